//! Cycles of services that wait for one another: the limit of a service yields to them.

use super::{Decision, GatedJob, HeldJob, Limit, Occupancy};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// Admits Jobs that the limit of their service alone would hold for ever.
pub(super) fn admit_cycles<'a, 'w: 'a>(
    occupancy: &mut Occupancy<'a>,
    decision: &mut Decision<'w>,
    running: &'a [GatedJob],
) {
    if !decision.held.iter().any(|held| matches!(held.limit, Limit::Service(_))) {
        return;
    }
    let runs = running.iter().chain(decision.admitted.iter().copied()).collect();
    let queued = decision.held.iter().map(|held| held.job).collect();
    let live = Live::find(occupancy, runs, queued);

    let mut yielded: HashMap<&str, u32> = HashMap::new();
    decision.held.retain(|HeldJob { job, limit }| {
        let Limit::Service(most) = limit else { return true };
        let count = yielded.entry(&job.service).or_default();
        if live.services.contains(&*job.service) || *count >= most.get() {
            return true;
        }
        // The Jobs that were admitted just now may have reached the limit of the network, or of the
        // tree.
        if !matches!(occupancy.holding_limit(job), Some(Limit::Service(_))) {
            return true;
        }
        *count += 1;
        occupancy.add(job);
        decision.admitted.push(job);
        false
    });
}

/// The network, trees and services that have a live run: one that will end by itself.
#[derive(Default)]
struct Live<'a> {
    network: bool,
    trees: HashSet<Uuid>,
    services: HashSet<&'a str>,
}

/// A node in the graph of Jobs that wait for one another.
struct Node<'a> {
    job: &'a GatedJob,
    runs: bool,
    /// How many of the things that it waits for are not known to be live: the unfinished children
    /// of a run, or the limits that hold a Job that does not run.
    waits: usize,
}

/// The nodes that wait, by the limits that hold them.
#[derive(Default)]
struct HeldNodes<'a> {
    network: Vec<usize>,
    trees: HashMap<Uuid, Vec<usize>>,
    services: HashMap<&'a str, Vec<usize>>,
}

// === impl Live ===

impl<'a> Live<'a> {
    /// Finds what is live: the least fixed point. A node becomes live once, so this takes one step
    /// for each edge.
    fn find(occupancy: &Occupancy<'_>, runs: Vec<&'a GatedJob>, queued: Vec<&'a GatedJob>) -> Self {
        let mut nodes: Vec<Node<'a>> = runs
            .into_iter()
            .map(|job| Node { job, runs: true, waits: 0 })
            .chain(queued.into_iter().map(|job| Node { job, runs: false, waits: 0 }))
            .collect();
        let parents = running_parents(occupancy, &mut nodes);
        let mut held = HeldNodes::find(occupancy, &mut nodes);

        let mut live = Self::default();
        let mut found: Vec<usize> =
            (0..nodes.len()).filter(|index| nodes[*index].waits == 0).collect();
        while let Some(index) = found.pop() {
            let Node { job, runs, .. } = nodes[index];
            let mut freed = if runs { live.ends(job, &mut held) } else { Vec::new() };
            freed.extend(&parents[index]);
            for other in freed {
                nodes[other].waits -= 1;
                if nodes[other].waits == 0 {
                    found.push(other);
                }
            }
        }
        live
    }

    /// A run will end by itself, so the limits that count it hold nobody for ever. Returns the
    /// nodes that these limits hold. Each limit returns its nodes once.
    fn ends(&mut self, job: &'a GatedJob, held: &mut HeldNodes<'a>) -> Vec<usize> {
        let mut freed = Vec::new();
        if !std::mem::replace(&mut self.network, true) {
            freed.append(&mut held.network);
        }
        if self.trees.insert(job.tree) {
            freed.append(held.trees.entry(job.tree).or_default());
        }
        if self.services.insert(&job.service) {
            freed.append(held.services.entry(&job.service).or_default());
        }
        freed
    }
}

// === impl HeldNodes ===

impl<'a> HeldNodes<'a> {
    fn find(occupancy: &Occupancy<'_>, nodes: &mut [Node<'a>]) -> Self {
        let mut held = Self::default();
        for (index, node) in nodes.iter_mut().enumerate().filter(|(_, node)| !node.runs) {
            for limit in occupancy.holding_limits(node.job).into_iter().flatten() {
                node.waits += 1;
                match limit {
                    Limit::Network(_) => held.network.push(index),
                    Limit::Tree(_) => held.trees.entry(node.job.tree).or_default().push(index),
                    Limit::Service(_) => {
                        held.services.entry(&node.job.service).or_default().push(index);
                    }
                }
            }
        }
        held
    }
}

/// For each node, the running Jobs of its parent. Also counts the children of each run, in `waits`.
fn running_parents(occupancy: &Occupancy<'_>, nodes: &mut [Node<'_>]) -> Vec<Vec<usize>> {
    let mut runs: HashMap<Uuid, Vec<usize>> = HashMap::new();
    for (index, node) in nodes.iter().enumerate().filter(|(_, node)| node.runs) {
        runs.entry(node.job.question).or_default().push(index);
    }
    let mut parents = vec![Vec::new(); nodes.len()];
    for index in 0..nodes.len() {
        let parent = occupancy.parents.get(&nodes[index].job.question).copied().flatten();
        let Some(of) = parent.and_then(|parent| runs.get(&parent)) else { continue };
        of.iter().for_each(|parent| nodes[*parent].waits += 1);
        parents[index].clone_from(of);
    }
    parents
}
