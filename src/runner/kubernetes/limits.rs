//! Which of the Jobs that wait for our own limits are to be released. Pure.
//!
//! A limit of the *network* or of a *tree* is on the runs that hold a place, without those that
//! wait for the candidate: a run is released where fewer than the limit run, **its ancestors not
//! counted**, for they end only after it. So of the runs without a running descendant there are
//! never more than the limit.
//!
//! No deadlock. Let every run wait for children, so that none ends by itself, and let `x` be the
//! one that was released last. Then fewer than the limit ran beside `x`'s ancestors; since then
//! runs have only ended, so fewer than the limit run now beside `x` and its ancestors. But those
//! are the ancestors of the child that `x` waits for; so that child can be released. It is of `x`'s
//! tree, and `x` is the last of its tree too; so the argument holds for both limits at once.
//!
//! The limit of a *service* counts the same way, but the argument does not hold: the last release
//! says nothing of another service. Where service A asks B in one tree, and B asks A in another,
//! each may hold the place that the other's child waits for. So that limit yields, and to a circle
//! only: a run is *live* where it has no unfinished child or all are live; a question that waits is
//! live where, of each limit that holds it, some run is live. What is not live waits for itself.
//! Where no run of a service is live, as many as the limit of those that its limit alone holds are
//! released. No deadlock then: where all wait, nothing is live, and the child of the argument above
//! is held by its service's limit alone, or not at all.
//!
//! Who asked the root does not matter: the asker of everyone, `local/local:local`, has no place.
//!
//! Order: inside a tree as they were launched; between trees, who would have the fewest runs beside
//! the ancestors. Where these are equal, a question whose asker runs comes first, for the asker's
//! place is idle until then; then the older one. Nothing that is released in a pass makes room for
//! what was held before in it, so each is looked at once: O(n log n), and a step for each ancestor.

mod circle;
#[cfg(test)]
mod tests;
use crate::event::Timestamp;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fmt;
use std::num::NonZeroU32;
use uuid::Uuid;

/// How many questions may run at once. None is no limit; there is no limit of zero, for it would
/// hold its questions for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub network: Option<NonZeroU32>,
    /// Of one tree of questions.
    pub tree: Option<NonZeroU32>,
    /// Of each service that [`Self::services`] does not name.
    pub service: Option<NonZeroU32>,
    /// Of these services: `<namespace>/<name>`.
    pub services: HashMap<String, NonZeroU32>,
}

/// A Job that waits for our limits, or that holds a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The Job's name.
    pub job: String,
    /// Its question.
    pub question: Uuid,
    /// The question that asked it.
    pub parent: Option<Uuid>,
    /// The root of its tree.
    pub tree: Uuid,
    /// What answers it: `<namespace>/<name>`.
    pub service: String,
    /// When it was launched.
    pub launched: Timestamp,
}

/// What is to be done with those that wait.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turns<'a> {
    /// To be released, in this order.
    pub release: Vec<&'a Place>,
    /// What holds each of the others.
    pub held: Vec<(&'a Place, Limit)>,
}

/// Which limit holds a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// The network's, of so many.
    Network(NonZeroU32),
    /// Its tree's, of so many.
    Tree(NonZeroU32),
    /// Its service's, of so many.
    Service(NonZeroU32),
}

/// Says who is released now. Of `running` are all that were released and are not finished.
pub fn turns<'a>(waiting: &'a [Place], running: &[Place], limits: &Limits) -> Turns<'a> {
    let mut floor = Floor::new(waiting, running, limits);
    let mut turns = floor.strict(waiting);
    circle::yield_to(&mut floor, &mut turns, running);
    turns
}

/// Who holds a place, counted.
struct Floor<'a> {
    limits: &'a Limits,
    /// Of each question that is known, who asked it: no circles in it.
    parents: HashMap<Uuid, Option<Uuid>>,
    /// By question: how many Jobs of it run (an earlier attempt may still end), and what it is.
    running: HashMap<Uuid, (u32, &'a Place)>,
    network: u32,
    trees: HashMap<Uuid, u32>,
    services: HashMap<&'a str, u32>,
}

/// How many runs wait for one that waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ancestors {
    all: u32,
    of_tree: u32,
    of_service: u32,
}

/// The order between trees: the least comes first.
type Rank = (u32, bool, Timestamp, Uuid);

// === impl Limits ===

impl Limits {
    /// Whether there is any: else no Job need wait for us.
    pub fn any(&self) -> bool {
        self.network.or(self.tree).or(self.service).is_some() || !self.services.is_empty()
    }

    /// How many of a service may run.
    pub fn of_service(&self, service: &str) -> Option<NonZeroU32> {
        self.services.get(service).copied().or(self.service)
    }
}

// === impl Limit ===

impl fmt::Display for Limit {
    /// For the asker's log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(limit) => write!(
                f,
                "It waits for its turn: of the whole network, {limit} questions may run at once."
            ),
            Self::Tree(limit) => write!(
                f,
                "It waits for its turn: of the questions of one tree, {limit} may run at once."
            ),
            Self::Service(limit) => write!(
                f,
                "It waits for its turn: of the questions to its service, {limit} may run at once."
            ),
        }
    }
}

// === impl Floor ===

impl<'a> Floor<'a> {
    fn new(waiting: &'a [Place], running: &'a [Place], limits: &'a Limits) -> Self {
        let mut floor = Self {
            limits,
            parents: parents(waiting.iter().chain(running)),
            running: HashMap::with_capacity(running.len()),
            network: 0,
            trees: HashMap::new(),
            services: HashMap::new(),
        };
        running.iter().for_each(|place| floor.take(place));
        floor
    }

    /// Gives a place to one.
    fn take(&mut self, place: &'a Place) {
        self.running.entry(place.question).or_insert((0, place)).0 += 1;
        self.network += 1;
        *self.trees.entry(place.tree).or_default() += 1;
        *self.services.entry(&place.service).or_default() += 1;
    }

    /// Releases all that the limits let go.
    fn strict<'w>(&mut self, waiting: &'w [Place]) -> Turns<'w>
    where
        'w: 'a,
    {
        let mut queues: HashMap<Uuid, Vec<&'w Place>> = HashMap::new();
        for place in waiting {
            queues.entry(place.tree).or_default().push(place);
        }
        for queue in queues.values_mut() {
            // The last is the first.
            queue.sort_unstable_by_key(|place| Reverse((place.launched, place.question)));
        }
        let mut heads: BinaryHeap<Reverse<(Rank, Uuid)>> = queues
            .iter()
            .filter_map(|(tree, queue)| Some(Reverse((self.rank(queue.last()?), *tree))))
            .collect();

        let mut turns = Turns::default();
        while let Some(Reverse((_, tree))) = heads.pop() {
            let Some(queue) = queues.get_mut(&tree) else { continue };
            let Some(place) = queue.pop() else { continue };
            match self.holds(place) {
                Some(limit) => turns.held.push((place, limit)),
                None => {
                    self.take(place);
                    turns.release.push(place);
                }
            }
            if let Some(next) = queue.last() {
                heads.push(Reverse((self.rank(next), tree)));
            }
        }
        turns
    }

    /// Which limits hold one: the network's, its tree's, its service's.
    fn gates(&self, place: &Place) -> [Option<Limit>; 3] {
        let ancestors = self.ancestors(place);
        let tree = self.trees.get(&place.tree).copied().unwrap_or(0);
        let service = self.services.get(&*place.service).copied().unwrap_or(0);
        let full = |limit: Option<NonZeroU32>, count: u32, ancestors: u32| {
            limit.filter(|limit| count.saturating_sub(ancestors) >= limit.get())
        };
        [
            full(self.limits.network, self.network, ancestors.all).map(Limit::Network),
            full(self.limits.tree, tree, ancestors.of_tree).map(Limit::Tree),
            full(self.limits.of_service(&place.service), service, ancestors.of_service)
                .map(Limit::Service),
        ]
    }

    /// Which limit holds one, if any. A service's is the last to be named: it alone can yield.
    fn holds(&self, place: &Place) -> Option<Limit> {
        self.gates(place).into_iter().flatten().next()
    }

    fn rank(&self, place: &Place) -> Rank {
        let ancestors = self.ancestors(place);
        let of_tree = self.trees.get(&place.tree).copied().unwrap_or(0);
        let asker_waits = ancestors.all == 0;
        (of_tree.saturating_sub(ancestors.of_tree), asker_waits, place.launched, place.question)
    }

    /// How many runs wait for this one. What a question asks is of its own tree, but what messages
    /// say of it is not checked; so each is counted where it says that it is.
    fn ancestors(&self, place: &Place) -> Ancestors {
        let mut ancestors = Ancestors::default();
        let mut next = self.parents.get(&place.question).copied().flatten();
        while let Some(question) = next {
            if let Some((jobs, run)) = self.running.get(&question) {
                ancestors.all += jobs;
                ancestors.of_tree += jobs * u32::from(run.tree == place.tree);
                ancestors.of_service += jobs * u32::from(run.service == place.service);
            }
            next = self.parents.get(&question).copied().flatten();
        }
        ancestors
    }
}

/// Who asked each question. Whoever forges messages can make a circle of askers: it is cut.
fn parents<'a>(places: impl Iterator<Item = &'a Place>) -> HashMap<Uuid, Option<Uuid>> {
    let mut parents: HashMap<_, _> = places.map(|place| (place.question, place.parent)).collect();
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
