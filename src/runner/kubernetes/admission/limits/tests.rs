use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn limit_of(limit: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(limit)
}

/// The same limit for each of these services.
fn each(services: impl IntoIterator<Item = String>, limit: u32) -> HashMap<String, NonZeroU32> {
    services.into_iter().filter_map(|service| Some((service, limit_of(limit)?))).collect()
}

fn job(question: u128, parent: Option<u128>, tree: u128, service: &str) -> GatedJob {
    GatedJob {
        job: format!("question-{question}"),
        question: Uuid::from_u128(question),
        parent: parent.map(Uuid::from_u128),
        tree: Uuid::from_u128(tree),
        service: service.to_owned(),
        launched: Timestamp(i64::try_from(question).unwrap()),
    }
}

fn roots(questions: std::ops::Range<u128>) -> Vec<GatedJob> {
    questions.map(|question| job(question, None, question, "octue/any")).collect()
}

fn admitted(waiting: &[GatedJob], running: &[GatedJob], limits: &Limits) -> Vec<u128> {
    let decision = decide(waiting, running, limits);
    assert_eq!(decision.admitted.len() + decision.held.len(), waiting.len());
    decision.admitted.iter().map(|job| job.question.as_u128()).collect()
}

#[test]
fn without_limits_all_are_admitted_in_the_order_of_their_launch() {
    let waiting: Vec<_> = roots(0..5).into_iter().rev().collect();
    assert_eq!(admitted(&waiting, &[], &Limits::default()), [0, 1, 2, 3, 4]);
}

#[test]
fn the_network_runs_no_more_than_its_limit() {
    let limits = Limits { network: limit_of(3), ..Limits::default() };
    assert_eq!(admitted(&roots(10..20), &roots(0..1), &limits), [10, 11]);
    assert_eq!(admitted(&roots(10..20), &roots(0..4), &limits), [0; 0]);
    let text = decide(&roots(1..2), &roots(2..5), &limits).held[0].limit.to_string();
    assert_eq!(text, "Queued: the network's limit of 3 concurrent questions is reached.");
}

#[test]
fn a_tree_of_thousands_does_not_hold_back_a_tree_of_one() {
    let large = |question| job(question, None, 0, "octue/any");
    let running: Vec<_> = (1..100).map(large).collect();
    let mut waiting: Vec<_> = (100..2100).map(large).collect();
    waiting.extend(roots(9000..9001));
    let limits = Limits { network: limit_of(100), ..Limits::default() };
    assert_eq!(admitted(&waiting, &running, &limits), [9000]);
}

#[test]
fn trees_are_admitted_in_alternation() {
    let waiting: Vec<_> = (0..6).map(|n| job(n, None, 100 + n / 3, "octue/any")).collect();
    let limits = Limits { network: limit_of(4), ..Limits::default() };
    assert_eq!(admitted(&waiting, &[], &limits), [0, 3, 1, 4]);
}

#[test]
fn a_parent_does_not_count_against_its_child() {
    let running = [job(1, None, 1, "octue/a"), job(2, Some(1), 1, "octue/a")];
    let limits = Limits {
        network: limit_of(1),
        tree: limit_of(1),
        services: each(["octue/a".into(), "octue/b".into()], 1),
    };
    assert_eq!(admitted(&[job(3, Some(2), 1, "octue/a")], &running, &limits), [3]);
    assert_eq!(admitted(&[job(4, None, 4, "octue/b")], &running, &limits), [0; 0]);
    // The second of two that were asked at once waits for the first.
    let pair = [job(3, Some(2), 1, "octue/a"), job(5, Some(2), 1, "octue/a")];
    assert_eq!(admitted(&pair, &running, &limits), [3]);
}

#[test]
fn the_child_of_a_running_parent_comes_before_a_new_tree() {
    let waiting = [job(5, None, 5, "octue/a"), job(7, Some(1), 1, "octue/a")];
    let limits = Limits { network: limit_of(2), ..Limits::default() };
    assert_eq!(admitted(&waiting, &roots(1..3), &limits), [7]);
}

#[test]
fn a_service_at_its_limit_holds_no_other_service() {
    let services = HashMap::from([("octue/few".to_owned(), limit_of(1).unwrap())]);
    let limits = Limits { services, ..Limits::default() };
    let few = |question| job(question, None, 0, "octue/few");
    let waiting = [few(1), few(2), job(3, None, 0, "octue/many")];
    assert_eq!(admitted(&waiting, &[], &limits), [1, 3]);
}

#[test]
fn the_limit_of_a_service_yields_to_a_cycle_and_to_nothing_else() {
    let limits =
        Limits { services: each(["octue/a".into(), "octue/b".into()], 1), ..Limits::default() };
    let running = [job(1, None, 1, "octue/a"), job(2, None, 2, "octue/b")];
    let waiting = [job(11, Some(1), 1, "octue/b"), job(12, Some(2), 2, "octue/a")];
    assert_eq!(admitted(&waiting, &running, &limits), [11, 12]);
    // If the run of `b` asked nothing, it will end: there is no cycle.
    assert_eq!(admitted(&waiting[..1], &running, &limits), [0; 0]);
    // Of many in one cycle, as many as the limit are admitted.
    let more: Vec<_> = (20..30).map(|n| job(n, Some(1), 1, "octue/b")).collect();
    let waiting = [&waiting[..], &more].concat();
    assert_eq!(admitted(&waiting, &running, &limits).len(), 2);
}

#[test]
fn a_cycle_of_parents_is_cut() {
    let waiting = [job(1, Some(2), 1, "octue/a"), job(2, Some(1), 1, "octue/a")];
    let running = [job(3, Some(3), 3, "octue/a")];
    let limits = Limits { network: limit_of(3), ..Limits::default() };
    assert_eq!(admitted(&waiting, &running, &limits), [1, 2]);
}

#[test]
fn each_of_ten_thousand_jobs_behind_one_cycle_is_decided() {
    let limits =
        Limits { network: limit_of(50), tree: limit_of(5), services: each(["o/a".into()], 2) };
    let running: Vec<_> = roots(0..50);
    let waiting: Vec<_> = (100..10_100)
        .map(|n| job(n, (n % 2 == 0).then_some(n % 50), if n % 2 == 0 { n % 50 } else { n }, "o/a"))
        .collect();
    let decision = decide(&waiting, &running, &limits);
    assert_eq!(decision.admitted.len() + decision.held.len(), 10_000);
}

/// What a question will do: which children it asks, and whether all at once.
#[derive(Clone, Debug)]
struct Plan {
    service: usize,
    children: Vec<Plan>,
    at_once: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let leaf = (0..3usize).prop_map(|service| Plan { service, children: vec![], at_once: true });
    leaf.prop_recursive(4, 24, 4, |inner| {
        (0..3usize, proptest::collection::vec(inner, 0..4), any::<bool>())
            .prop_map(|(service, children, at_once)| Plan { service, children, at_once })
    })
}

fn limit() -> impl Strategy<Value = Option<NonZeroU32>> {
    proptest::option::of((1..4u32).prop_map(|limit| NonZeroU32::new(limit).unwrap()))
}

/// A network whose questions do what they plan.
struct World {
    limits: Limits,
    /// Each depth has a service of its own, so there is no cycle.
    layered: bool,
    next: u128,
    waiting: Vec<GatedJob>,
    running: Vec<GatedJob>,
    /// The children that each unfinished question has not asked yet.
    plans: BTreeMap<Uuid, (Vec<Plan>, bool)>,
    finished: usize,
}

impl World {
    fn ask(&mut self, plan: Plan, parent: Option<&GatedJob>) {
        self.next += 1;
        let tree = parent.map_or(self.next, |parent| parent.tree.as_u128());
        let depth = parent.map_or(0, |parent| self.depth(parent) + 1);
        let service = if self.layered { depth } else { plan.service };
        let parent = parent.map(|parent| parent.question.as_u128());
        let job = job(self.next, parent, tree, &format!("octue/{service}"));
        self.plans.insert(job.question, (plan.children, plan.at_once));
        self.waiting.push(job);
    }

    fn known(&self, question: Uuid) -> Option<&GatedJob> {
        self.running.iter().chain(&self.waiting).find(|job| job.question == question)
    }

    fn depth(&self, job: &GatedJob) -> usize {
        self.ancestors(job).len()
    }

    fn ancestors(&self, job: &GatedJob) -> Vec<Uuid> {
        let mut ancestors = Vec::new();
        let mut next = job.parent;
        while let Some(parent) = next {
            ancestors.push(parent);
            next = self.known(parent).and_then(|parent| parent.parent);
        }
        ancestors
    }

    /// How many Jobs run, not counting the ancestors of a Job.
    fn beside(&self, job: &GatedJob, counts: impl Fn(&GatedJob) -> bool) -> u32 {
        let ancestors = self.ancestors(job);
        let beside = |other: &&GatedJob| counts(other) && !ancestors.contains(&other.question);
        u32::try_from(self.running.iter().filter(beside).count()).unwrap()
    }

    fn busy(&self, job: &GatedJob) -> bool {
        self.running.iter().chain(&self.waiting).any(|other| other.parent == Some(job.question))
    }

    fn release(&mut self) -> Result<(), TestCaseError> {
        let admitted: Vec<GatedJob> = decide(&self.waiting, &self.running, &self.limits)
            .admitted
            .into_iter()
            .cloned()
            .collect();
        for job in admitted {
            let beside = self.beside(&job, |_| true);
            prop_assert!(self.limits.network.is_none_or(|limit| beside < limit.get()));
            let beside = self.beside(&job, |other| other.tree == job.tree);
            prop_assert!(self.limits.tree.is_none_or(|limit| beside < limit.get()));
            let beside = self.beside(&job, |other| other.service == job.service);
            let kept =
                self.limits.services.get(&job.service).is_none_or(|limit| beside < limit.get());
            prop_assert!(kept || !self.layered, "the limit yielded without a cycle");
            self.waiting.retain(|other| *other != job);
            self.running.push(job);
        }
        let tips = self
            .running
            .iter()
            .filter(|job| !self.running.iter().any(|other| other.parent == Some(job.question)));
        let tips = u32::try_from(tips.count()).unwrap();
        prop_assert!(self.limits.network.is_none_or(|limit| tips <= limit.get()));
        Ok(())
    }

    /// A run that waits for nothing asks its next children, or ends.
    fn step(&mut self, choice: usize) -> Result<(), TestCaseError> {
        let free: Vec<_> = self.running.iter().filter(|job| !self.busy(job)).cloned().collect();
        prop_assert!(!free.is_empty(), "deadlock: {:?}", self.waiting);
        let job = &free[choice % free.len()];
        let (children, at_once) = self.plans.get_mut(&job.question).unwrap();
        if children.is_empty() {
            self.running.retain(|other| other != job);
            self.finished += 1;
            return Ok(());
        }
        let count = if *at_once { children.len() } else { 1 };
        let asked: Vec<_> = children.drain(..count).collect();
        asked.into_iter().for_each(|plan| self.ask(plan, Some(job)));
        Ok(())
    }
}

fn size(plan: &Plan) -> usize {
    1 + plan.children.iter().map(size).sum::<usize>()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_tree_finishes_under_every_limit(
        trees in proptest::collection::vec(plan(), 1..8),
        (network, tree, service) in (limit(), limit(), limit()),
        layered in any::<bool>(),
        choices in proptest::collection::vec(any::<usize>(), 64),
    ) {
        let names = (0..16).map(|service| format!("octue/{service}"));
        let services = service.map_or_else(HashMap::new, |limit| each(names, limit.get()));
        let limits = Limits { network, tree, services };
        let all: usize = trees.iter().map(size).sum();
        let mut world = World {
            limits, layered, next: 0, waiting: vec![], running: vec![],
            plans: BTreeMap::new(), finished: 0,
        };
        trees.into_iter().for_each(|plan| world.ask(plan, None));
        for step in 0.. {
            world.release()?;
            if world.running.is_empty() && world.waiting.is_empty() {
                break;
            }
            world.step(choices[step % choices.len()])?;
        }
        prop_assert_eq!(world.finished, all);
    }
}
