use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn most(limit: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(limit)
}

fn place(question: u128, parent: Option<u128>, tree: u128, service: &str) -> Place {
    Place {
        job: format!("question-{question}"),
        question: Uuid::from_u128(question),
        parent: parent.map(Uuid::from_u128),
        tree: Uuid::from_u128(tree),
        service: service.to_owned(),
        launched: Timestamp(i64::try_from(question).unwrap()),
    }
}

fn roots(questions: std::ops::Range<u128>) -> Vec<Place> {
    questions.map(|question| place(question, None, question, "octue/any")).collect()
}

fn released(waiting: &[Place], running: &[Place], limits: &Limits) -> Vec<u128> {
    let turns = turns(waiting, running, limits);
    assert_eq!(turns.release.len() + turns.held.len(), waiting.len());
    turns.release.iter().map(|place| place.question.as_u128()).collect()
}

#[test]
fn without_limits_all_go_in_the_order_of_their_launch() {
    let waiting: Vec<_> = roots(0..5).into_iter().rev().collect();
    assert_eq!(released(&waiting, &[], &Limits::default()), [0, 1, 2, 3, 4]);
    assert!(!Limits::default().any());
}

#[test]
fn of_the_network_no_more_than_its_limit_run() {
    let limits = Limits { network: most(3), ..Limits::default() };
    assert_eq!(released(&roots(10..20), &roots(0..1), &limits), [10, 11]);
    assert_eq!(released(&roots(10..20), &roots(0..4), &limits), [0; 0]);
    let words = turns(&roots(1..2), &roots(2..5), &limits).held[0].1.to_string();
    assert_eq!(words, "It waits for its turn: of the whole network, 3 questions may run at once.");
}

#[test]
fn a_tree_of_thousands_does_not_hold_back_a_tree_of_one() {
    let large = |question| place(question, None, 0, "octue/any");
    let running: Vec<_> = (1..100).map(large).collect();
    let mut waiting: Vec<_> = (100..2100).map(large).collect();
    waiting.extend(roots(9000..9001));
    let limits = Limits { network: most(100), ..Limits::default() };
    assert_eq!(released(&waiting, &running, &limits), [9000]);
}

#[test]
fn trees_take_turns() {
    let waiting: Vec<_> = (0..6).map(|n| place(n, None, 100 + n / 3, "octue/any")).collect();
    let limits = Limits { network: most(4), ..Limits::default() };
    assert_eq!(released(&waiting, &[], &limits), [0, 3, 1, 4]);
}

#[test]
fn an_asker_that_waits_makes_room_for_what_it_asked() {
    let running = [place(1, None, 1, "octue/a"), place(2, Some(1), 1, "octue/a")];
    let limits = Limits { network: most(1), tree: most(1), service: most(1), ..Limits::default() };
    assert_eq!(released(&[place(3, Some(2), 1, "octue/a")], &running, &limits), [3]);
    assert_eq!(released(&[place(4, None, 4, "octue/b")], &running, &limits), [0; 0]);
    // The second of two that were asked at once waits for the first.
    let pair = [place(3, Some(2), 1, "octue/a"), place(5, Some(2), 1, "octue/a")];
    assert_eq!(released(&pair, &running, &limits), [3]);
}

#[test]
fn what_a_waiting_asker_asked_comes_before_new_trees() {
    let waiting = [place(5, None, 5, "octue/a"), place(7, Some(1), 1, "octue/a")];
    let limits = Limits { network: most(2), ..Limits::default() };
    assert_eq!(released(&waiting, &roots(1..3), &limits), [7]);
}

#[test]
fn one_service_that_is_full_holds_back_no_other() {
    let services = HashMap::from([("octue/few".to_owned(), most(1).unwrap())]);
    let limits = Limits { services, ..Limits::default() };
    let few = |question| place(question, None, 0, "octue/few");
    let waiting = [few(1), few(2), place(3, None, 0, "octue/many")];
    assert_eq!(released(&waiting, &[], &limits), [1, 3]);
}

#[test]
fn the_limit_of_a_service_yields_to_a_circle_and_to_nothing_else() {
    let limits = Limits { service: most(1), ..Limits::default() };
    let running = [place(1, None, 1, "octue/a"), place(2, None, 2, "octue/b")];
    let waiting = [place(11, Some(1), 1, "octue/b"), place(12, Some(2), 2, "octue/a")];
    assert_eq!(released(&waiting, &running, &limits), [11, 12]);
    // Where the one of `b` asked nothing, it will end: no circle.
    assert_eq!(released(&waiting[..1], &running, &limits), [0; 0]);
    // Of many in one circle, as many go as the limit says.
    let more: Vec<_> = (20..30).map(|n| place(n, Some(1), 1, "octue/b")).collect();
    let waiting = [&waiting[..], &more].concat();
    assert_eq!(released(&waiting, &running, &limits).len(), 2);
}

#[test]
fn askers_in_a_circle_are_cut_and_nothing_hangs() {
    let waiting = [place(1, Some(2), 1, "octue/a"), place(2, Some(1), 1, "octue/a")];
    let running = [place(3, Some(3), 3, "octue/a")];
    let limits = Limits { network: most(3), ..Limits::default() };
    assert_eq!(released(&waiting, &running, &limits), [1, 2]);
}

#[test]
fn ten_thousand_wait_for_one_circle_and_each_is_looked_at() {
    let limits = Limits { network: most(50), tree: most(5), service: most(2), ..Limits::default() };
    let running: Vec<_> = roots(0..50);
    let waiting: Vec<_> = (100..10_100)
        .map(|n| {
            place(n, (n % 2 == 0).then_some(n % 50), if n % 2 == 0 { n % 50 } else { n }, "o/a")
        })
        .collect();
    let turns = turns(&waiting, &running, &limits);
    assert_eq!(turns.release.len() + turns.held.len(), 10_000);
}

/// What a question will do: where it asks, whom, and whether all at once.
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

/// A network whose questions do as they planned.
struct World {
    limits: Limits,
    /// Services are asked only by those before them: there can be no circle.
    layered: bool,
    next: u128,
    waiting: Vec<Place>,
    running: Vec<Place>,
    /// What each unfinished question is still to ask.
    plans: BTreeMap<Uuid, (Vec<Plan>, bool)>,
    finished: usize,
}

impl World {
    fn ask(&mut self, plan: Plan, parent: Option<&Place>) {
        self.next += 1;
        let tree = parent.map_or(self.next, |parent| parent.tree.as_u128());
        let depth = parent.map_or(0, |parent| self.depth(parent) + 1);
        let service = if self.layered { depth } else { plan.service };
        let parent = parent.map(|parent| parent.question.as_u128());
        let place = place(self.next, parent, tree, &format!("octue/{service}"));
        self.plans.insert(place.question, (plan.children, plan.at_once));
        self.waiting.push(place);
    }

    fn known(&self, question: Uuid) -> Option<&Place> {
        self.running.iter().chain(&self.waiting).find(|place| place.question == question)
    }

    fn depth(&self, place: &Place) -> usize {
        self.ancestors(place).len()
    }

    fn ancestors(&self, place: &Place) -> Vec<Uuid> {
        let mut ancestors = Vec::new();
        let mut next = place.parent;
        while let Some(parent) = next {
            ancestors.push(parent);
            next = self.known(parent).and_then(|parent| parent.parent);
        }
        ancestors
    }

    /// How many run beside the ancestors of one.
    fn beside(&self, place: &Place, counts: impl Fn(&Place) -> bool) -> u32 {
        let ancestors = self.ancestors(place);
        let beside = |other: &&Place| counts(other) && !ancestors.contains(&other.question);
        u32::try_from(self.running.iter().filter(beside).count()).unwrap()
    }

    fn busy(&self, place: &Place) -> bool {
        self.running.iter().chain(&self.waiting).any(|other| other.parent == Some(place.question))
    }

    fn release(&mut self) -> Result<(), TestCaseError> {
        let released: Vec<Place> = turns(&self.waiting, &self.running, &self.limits)
            .release
            .into_iter()
            .cloned()
            .collect();
        for place in released {
            let beside = self.beside(&place, |_| true);
            prop_assert!(self.limits.network.is_none_or(|limit| beside < limit.get()));
            let beside = self.beside(&place, |other| other.tree == place.tree);
            prop_assert!(self.limits.tree.is_none_or(|limit| beside < limit.get()));
            let beside = self.beside(&place, |other| other.service == place.service);
            let kept = self.limits.service.is_none_or(|limit| beside < limit.get());
            prop_assert!(kept || !self.layered, "no circle, and yet it yielded");
            self.waiting.retain(|other| *other != place);
            self.running.push(place);
        }
        let tips = self
            .running
            .iter()
            .filter(|place| !self.running.iter().any(|other| other.parent == Some(place.question)));
        let tips = u32::try_from(tips.count()).unwrap();
        prop_assert!(self.limits.network.is_none_or(|limit| tips <= limit.get()));
        Ok(())
    }

    /// Some run that waits for nothing asks what it planned, or ends.
    fn step(&mut self, choice: usize) -> Result<(), TestCaseError> {
        let free: Vec<_> = self.running.iter().filter(|place| !self.busy(place)).cloned().collect();
        prop_assert!(!free.is_empty(), "all wait for one another: {:?}", self.waiting);
        let place = &free[choice % free.len()];
        let (children, at_once) = self.plans.get_mut(&place.question).unwrap();
        if children.is_empty() {
            self.running.retain(|other| other != place);
            self.finished += 1;
            return Ok(());
        }
        let count = if *at_once { children.len() } else { 1 };
        let asked: Vec<_> = children.drain(..count).collect();
        asked.into_iter().for_each(|plan| self.ask(plan, Some(place)));
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
        let limits = Limits { network, tree, service, services: HashMap::new() };
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
