//! Circles of services that wait for one another, and how the limit of a service yields to them.

use super::{Floor, Limit, Place, Turns};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// Releases those that the limit of their service alone would hold for ever.
pub(super) fn yield_to<'a, 'w: 'a>(
    floor: &mut Floor<'a>,
    turns: &mut Turns<'w>,
    running: &'a [Place],
) {
    if !turns.held.iter().any(|(_, limit)| matches!(limit, Limit::Service(_))) {
        return;
    }
    let runs = running.iter().chain(turns.release.iter().copied()).collect();
    let queued = turns.held.iter().map(|(place, _)| *place).collect();
    let live = Live::find(floor, runs, queued);

    let mut yielded: HashMap<&str, u32> = HashMap::new();
    turns.held.retain(|(place, limit)| {
        let Limit::Service(most) = limit else { return true };
        let count = yielded.entry(&place.service).or_default();
        if live.services.contains(&*place.service) || *count >= most.get() {
            return true;
        }
        // What yielded a moment ago may have taken the last place of the network, or of the tree.
        if !matches!(floor.holds(place), Some(Limit::Service(_))) {
            return true;
        }
        *count += 1;
        floor.take(place);
        turns.release.push(place);
        false
    });
}

/// Where some run will end by itself, sooner or later.
#[derive(Default)]
struct Live<'a> {
    network: bool,
    trees: HashSet<Uuid>,
    services: HashSet<&'a str>,
}

/// A node of the graph of who waits for whom.
struct Node<'a> {
    place: &'a Place,
    runs: bool,
    /// How much of what it waits for is not known to be live: the unfinished children of a run,
    /// the limits that hold one that does not run.
    waits: usize,
}

/// Those that wait, by the limits that hold them.
#[derive(Default)]
struct Held<'a> {
    network: Vec<usize>,
    trees: HashMap<Uuid, Vec<usize>>,
    services: HashMap<&'a str, Vec<usize>>,
}

// === impl Live ===

impl<'a> Live<'a> {
    /// The least fixed point. A node becomes live once, so it costs a step for each edge.
    fn find(floor: &Floor<'_>, runs: Vec<&'a Place>, queued: Vec<&'a Place>) -> Self {
        let mut nodes: Vec<Node<'a>> = runs
            .into_iter()
            .map(|place| Node { place, runs: true, waits: 0 })
            .chain(queued.into_iter().map(|place| Node { place, runs: false, waits: 0 }))
            .collect();
        let askers = askers(floor, &mut nodes);
        let mut held = Held::find(floor, &mut nodes);

        let mut live = Self::default();
        let mut found: Vec<usize> =
            (0..nodes.len()).filter(|index| nodes[*index].waits == 0).collect();
        while let Some(index) = found.pop() {
            let Node { place, runs, .. } = nodes[index];
            let mut freed = if runs { live.ends(place, &mut held) } else { Vec::new() };
            freed.extend(&askers[index]);
            for other in freed {
                nodes[other].waits -= 1;
                if nodes[other].waits == 0 {
                    found.push(other);
                }
            }
        }
        live
    }

    /// A run will end. Says who is held no more by a limit of which some run will, each once.
    fn ends(&mut self, place: &'a Place, held: &mut Held<'a>) -> Vec<usize> {
        let mut freed = Vec::new();
        if !std::mem::replace(&mut self.network, true) {
            freed.append(&mut held.network);
        }
        if self.trees.insert(place.tree) {
            freed.append(held.trees.entry(place.tree).or_default());
        }
        if self.services.insert(&place.service) {
            freed.append(held.services.entry(&place.service).or_default());
        }
        freed
    }
}

// === impl Held ===

impl<'a> Held<'a> {
    fn find(floor: &Floor<'_>, nodes: &mut [Node<'a>]) -> Self {
        let mut held = Self::default();
        for (index, node) in nodes.iter_mut().enumerate().filter(|(_, node)| !node.runs) {
            for limit in floor.gates(node.place).into_iter().flatten() {
                node.waits += 1;
                match limit {
                    Limit::Network(_) => held.network.push(index),
                    Limit::Tree(_) => held.trees.entry(node.place.tree).or_default().push(index),
                    Limit::Service(_) => {
                        held.services.entry(&node.place.service).or_default().push(index);
                    }
                }
            }
        }
        held
    }
}

/// Of each node, the runs that asked it; and counts the children of each run.
fn askers(floor: &Floor<'_>, nodes: &mut [Node<'_>]) -> Vec<Vec<usize>> {
    let mut runs: HashMap<Uuid, Vec<usize>> = HashMap::new();
    for (index, node) in nodes.iter().enumerate().filter(|(_, node)| node.runs) {
        runs.entry(node.place.question).or_default().push(index);
    }
    let mut askers = vec![Vec::new(); nodes.len()];
    for index in 0..nodes.len() {
        let parent = floor.parents.get(&nodes[index].place.question).copied().flatten();
        let Some(of) = parent.and_then(|parent| runs.get(&parent)) else { continue };
        of.iter().for_each(|asker| nodes[*asker].waits += 1);
        askers[index].clone_from(of);
    }
    askers
}
