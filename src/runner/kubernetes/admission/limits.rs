//! Decides which of the Jobs that wait for our own limits are admitted. Pure.
//!
//! # The limits of the network and of a tree
//!
//! A Job is admitted if fewer runs than the limit are running, **not counting its ancestors**. They
//! are not counted because they wait for it and end only after it. So there are never more runs
//! without a running descendant than the limit.
//!
//! *No deadlock.* Suppose that every run waits for a child, so that none ends by itself. Let `x` be
//! the run that was admitted last. At that time, fewer runs than the limit were running, not
//! counting the ancestors of `x`. Since then runs have only ended. So fewer runs than the limit are
//! running now, not counting `x` and its ancestors. But `x` and its ancestors are the ancestors of
//! the child that `x` waits for, so that child can be admitted. It is in the tree of `x`, and `x`
//! was also the last run admitted in its tree, so the argument holds for both limits at once.
//!
//! # The limit of a service
//!
//! This limit counts in the same way, but the argument does not hold for it, because the last
//! admission may be of another service. For example, service A asks B in one tree, and B asks A in
//! another. Each run may then use up the limit that the child of the other waits for. So this limit
//! yields, but only to such a cycle:
//!
//! * A run is *live* if it has no unfinished child, or if all its unfinished children are live.
//! * A Job that waits is live if each limit that holds it counts some live run.
//! * What is not live waits for itself. So if no run of a service is live, Jobs that only the limit
//!   of that service holds are admitted: in one pass, at most as many as the limit.
//!
//! Then there is no deadlock: if every run waits, nothing is live, and the child of the argument
//! above is held by the limit of its service alone, or not at all.
//!
//! The parent of a root does not matter: it does not run here (usually it is `local/local:local`).
//!
//! # The order
//!
//! Inside a tree, Jobs are admitted in the order of their launches. Between trees, the tree comes
//! first that has the fewest runs, not counting the ancestors of its next Job. If these are equal,
//! a Job whose parent runs comes first, because its parent is idle until then; then the Job that
//! was launched first. An admission never frees a limit for a Job that was held before it in the
//! same pass, so each Job is decided once: O(n log n), and a step for each ancestor.

mod cycles;
#[cfg(test)]
mod tests;
use crate::event::Timestamp;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fmt;
use std::num::NonZeroU32;
use uuid::Uuid;

/// How many questions may run at once. A limit cannot be zero: it would hold its questions for
/// ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// In the network.
    pub(super) network: Option<NonZeroU32>,
    /// In one tree of questions.
    pub(super) tree: Option<NonZeroU32>,
    /// Of one service, by `<namespace>/<name>`.
    pub(super) services: HashMap<String, NonZeroU32>,
}

/// A Job that waits for our limits, or counts towards them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GatedJob {
    /// Its name.
    pub(super) job: String,
    /// Its question.
    pub(super) question: Uuid,
    /// The question that asked it.
    pub(super) parent: Option<Uuid>,
    /// The root of its tree.
    pub(super) tree: Uuid,
    /// The service that answers it: `<namespace>/<name>`.
    pub(super) service: String,
    /// When it was launched.
    pub(super) launched: Timestamp,
}

/// What happens to the Jobs that wait.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decision<'a> {
    /// To be admitted, in this order.
    pub(super) admitted: Vec<&'a GatedJob>,
    /// The others.
    pub(super) held: Vec<HeldJob<'a>>,
}

/// A Job that is not admitted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HeldJob<'a> {
    pub(super) job: &'a GatedJob,
    /// The limit that holds it.
    pub(super) limit: Limit,
}

/// A limit that is reached, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Limit {
    /// The network's.
    Network(NonZeroU32),
    /// Its tree's.
    Tree(NonZeroU32),
    /// Its service's.
    Service(NonZeroU32),
}

/// Decides which Jobs are admitted. `running` are all that were admitted and are not finished.
pub(super) fn decide<'a>(
    waiting: &'a [GatedJob],
    running: &[GatedJob],
    limits: &Limits,
) -> Decision<'a> {
    let mut occupancy = Occupancy::new(waiting, running, limits);
    let mut decision = occupancy.admit_within_limits(waiting);
    cycles::admit_cycles(&mut occupancy, &mut decision, running);
    decision
}

/// The running Jobs, counted.
struct Occupancy<'a> {
    limits: &'a Limits,
    /// The parent of each known question, without cycles.
    parents: HashMap<Uuid, Option<Uuid>>,
    /// By question.
    running: HashMap<Uuid, RunningQuestion<'a>>,
    network: u32,
    trees: HashMap<Uuid, u32>,
    services: HashMap<&'a str, u32>,
}

/// A question that runs.
struct RunningQuestion<'a> {
    /// How many Jobs of it run: a previous attempt may not have ended.
    jobs: u32,
    job: &'a GatedJob,
}

/// How many running Jobs wait for a candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct AncestorCounts {
    all: u32,
    of_tree: u32,
    of_service: u32,
}

/// The order between trees: the least comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// How many runs its tree has, not counting its ancestors.
    of_tree: u32,
    is_without_parent: bool,
    launched: Timestamp,
    question: Uuid,
}

// === impl Limit ===

impl fmt::Display for Limit {
    /// For the parent's log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(limit) => {
                write!(f, "Queued: the network's limit of {limit} concurrent questions is reached.")
            }
            Self::Tree(limit) => write!(
                f,
                "Queued: the limit of {limit} concurrent questions in one tree is reached."
            ),
            Self::Service(limit) => {
                write!(f, "Queued: its service's limit of {limit} concurrent questions is reached.")
            }
        }
    }
}

// === impl Occupancy ===

impl<'a> Occupancy<'a> {
    fn new(waiting: &'a [GatedJob], running: &'a [GatedJob], limits: &'a Limits) -> Self {
        let mut occupancy = Self {
            limits,
            parents: parents(waiting.iter().chain(running)),
            running: HashMap::with_capacity(running.len()),
            network: 0,
            trees: HashMap::new(),
            services: HashMap::new(),
        };
        running.iter().for_each(|job| occupancy.add(job));
        occupancy
    }

    /// Counts a Job that runs.
    fn add(&mut self, job: &'a GatedJob) {
        self.running.entry(job.question).or_insert(RunningQuestion { jobs: 0, job }).jobs += 1;
        self.network += 1;
        *self.trees.entry(job.tree).or_default() += 1;
        *self.services.entry(&job.service).or_default() += 1;
    }

    /// Admits all Jobs that no limit holds.
    fn admit_within_limits<'w>(&mut self, waiting: &'w [GatedJob]) -> Decision<'w>
    where
        'w: 'a,
    {
        let mut queues: HashMap<Uuid, Vec<&'w GatedJob>> = HashMap::new();
        for job in waiting {
            queues.entry(job.tree).or_default().push(job);
        }
        for queue in queues.values_mut() {
            // In reverse: the next Job is popped from the end.
            queue.sort_unstable_by_key(|job| Reverse((job.launched, job.question)));
        }
        let mut heads: BinaryHeap<Reverse<(Rank, Uuid)>> = queues
            .iter()
            .filter_map(|(tree, queue)| Some(Reverse((self.rank(queue.last()?), *tree))))
            .collect();

        let mut decision = Decision::default();
        while let Some(Reverse((_, tree))) = heads.pop() {
            let Some(queue) = queues.get_mut(&tree) else { continue };
            let Some(job) = queue.pop() else { continue };
            match self.holding_limit(job) {
                Some(limit) => decision.held.push(HeldJob { job, limit }),
                None => {
                    self.add(job);
                    decision.admitted.push(job);
                }
            }
            if let Some(next) = queue.last() {
                heads.push(Reverse((self.rank(next), tree)));
            }
        }
        decision
    }

    /// The limits that hold a Job: the network's, its tree's, its service's.
    fn holding_limits(&self, job: &GatedJob) -> [Option<Limit>; 3] {
        let ancestors = self.ancestors(job);
        let tree = self.trees.get(&job.tree).copied().unwrap_or(0);
        let service = self.services.get(&*job.service).copied().unwrap_or(0);
        let full = |limit: Option<NonZeroU32>, count: u32, ancestors: u32| {
            limit.filter(|limit| count.saturating_sub(ancestors) >= limit.get())
        };
        [
            full(self.limits.network, self.network, ancestors.all).map(Limit::Network),
            full(self.limits.tree, tree, ancestors.of_tree).map(Limit::Tree),
            full(self.limits.services.get(&job.service).copied(), service, ancestors.of_service)
                .map(Limit::Service),
        ]
    }

    /// The first limit that holds a Job. A service's comes last: it alone can yield.
    fn holding_limit(&self, job: &GatedJob) -> Option<Limit> {
        self.holding_limits(job).into_iter().flatten().next()
    }

    fn rank(&self, job: &GatedJob) -> Rank {
        let ancestors = self.ancestors(job);
        let of_tree = self.trees.get(&job.tree).copied().unwrap_or(0);
        Rank {
            of_tree: of_tree.saturating_sub(ancestors.of_tree),
            is_without_parent: ancestors.all == 0,
            launched: job.launched,
            question: job.question,
        }
    }

    /// How many running Jobs wait for this one. A question and its parent belong to one tree, but
    /// nobody checks that their messages name the same: each is counted in the tree that its own
    /// message names.
    fn ancestors(&self, job: &GatedJob) -> AncestorCounts {
        let mut ancestors = AncestorCounts::default();
        let mut next = self.parents.get(&job.question).copied().flatten();
        while let Some(question) = next {
            if let Some(RunningQuestion { jobs, job: run }) = self.running.get(&question) {
                ancestors.all += jobs;
                ancestors.of_tree += jobs * u32::from(run.tree == job.tree);
                ancestors.of_service += jobs * u32::from(run.service == job.service);
            }
            next = self.parents.get(&question).copied().flatten();
        }
        ancestors
    }
}

/// The parent of each question. Forged messages can form a cycle of parents: it is cut.
fn parents<'a>(jobs: impl Iterator<Item = &'a GatedJob>) -> HashMap<Uuid, Option<Uuid>> {
    let mut parents: HashMap<_, _> = jobs.map(|job| (job.question, job.parent)).collect();
    let mut sound: HashSet<Uuid> = HashSet::with_capacity(parents.len());
    let questions: Vec<_> = parents.keys().copied().collect();
    for question in questions {
        let mut path = Vec::new();
        let mut on_path = HashSet::new();
        let mut next = Some(question);
        while let Some(question) = next.filter(|question| !sound.contains(question)) {
            path.push(question);
            on_path.insert(question);
            next = parents.get(&question).copied().flatten();
            if next.is_some_and(|next| on_path.contains(&next)) {
                parents.insert(question, None);
                next = None;
            }
        }
        sound.extend(path);
    }
    parents
}
