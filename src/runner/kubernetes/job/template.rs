//! Writes the JSON of Jobs quickly, from templates.
//!
//! Most of a Job is the same for all questions to a service revision. So the Job of the first
//! question is serialized once, with marks in the places that differ between questions: the
//! template. For the next questions only these places are filled in. The result equals the
//! serialized [`manifest`], except for spaces and the order of keys.

use super::requests::{RequestAndLimit, ResourceRequests};
use super::{
    Gate, JobRequest, SAFE_TO_EVICT, annotation, check_length, labels, manifest, name, put_gate,
};
use crate::event::SruidBuf;
use crate::runner::kubernetes::inputs::QuestionMount;
use crate::runner::kubernetes::quantity::Quantity;
use crate::runner::kubernetes::refusal::LaunchRefusal;
use crate::sdk::arguments::{self, ATTRIBUTES_OPTION, MANIFEST_OPTION, VALUES_OPTION};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::io::Write;
use std::sync::{Arc, PoisonError, RwLock};

/// The most templates in the cache. Real networks have hundreds of service revisions.
const KEPT: usize = 4096;

/// The templates of one network with one file of settings.
#[derive(Debug, Default)]
pub struct Templates {
    kept: RwLock<HashMap<SruidBuf, Arc<Template>>>,
}

/// A serialized Job with holes for what differs between questions.
#[derive(Debug)]
struct Template {
    gate: Gate,
    /// The text before each hole, and the hole.
    pieces: Vec<(Vec<u8>, Hole)>,
    /// The text behind the last hole.
    end: Vec<u8>,
}

/// A place in a Job that differs between questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hole {
    Name,
    Labels,
    Annotations,
    PodLabels,
    PodAnnotations,
    Arguments,
    Cpus,
    Memory,
    Storage,
    CpusLimit,
    MemoryLimit,
    StorageLimit,
}

/// The values for the holes, of one question.
struct Filling<'o> {
    request: &'o JobRequest<'o>,
    requests: ResourceRequests,
    /// The attributes as an argument: JSON in a JSON string, with every `$` twice.
    argument: Vec<u8>,
    /// The attributes as an annotation, as received.
    annotation: Vec<u8>,
    labels: Vec<u8>,
    /// The annotations with the full values of shortened labels, each with a comma behind it.
    whole: Vec<u8>,
}

// === impl Templates ===

impl Templates {
    /// The JSON of the Job of a question.
    ///
    /// # Errors
    ///
    /// The same as those of [`manifest`].
    pub fn body(&self, request: &JobRequest<'_>) -> Result<Vec<u8>, LaunchRefusal> {
        // A question that is mounted is rare, and too large for a template.
        if QuestionMount::new(request.launch.inputs, request.service.inputs, request.nonce)?
            .is_some()
        {
            return manifest(request).map(|job| json(&job));
        }
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(request.launch.recipient).map(Arc::clone);
        drop(kept);
        match found {
            Some(template) if template.gate == request.gate => template.fill(request),
            Some(_) | None => self.make(request),
        }
    }

    fn make(&self, request: &JobRequest<'_>) -> Result<Vec<u8>, LaunchRefusal> {
        let job = manifest(request)?;
        let body = json(&job);
        if let Some(template) = Template::of(job, request) {
            let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= KEPT {
                kept.clear();
            }
            kept.insert(request.launch.recipient.clone(), Arc::new(template));
        }
        Ok(body)
    }
}

// === impl Template ===

impl Template {
    /// None if a mark is not found exactly once: then a value of the settings equals a mark.
    fn of(mut job: Job, request: &JobRequest<'_>) -> Option<Self> {
        let mut marked = mark(&mut job, request)?;
        let text = serde_json::to_string(&job).ok()?;
        let mut places = Vec::with_capacity(marked.len());
        for hole in marked.drain(..) {
            let written = hole.written();
            let mut found = text.match_indices(&written);
            let (at, _) = found.next()?;
            if found.next().is_some() {
                return None;
            }
            places.push((at, written.len(), hole));
        }
        places.sort_unstable_by_key(|&(at, ..)| at);
        let (mut pieces, mut start) = (Vec::new(), 0);
        for (at, length, hole) in places {
            pieces.push((text.as_bytes().get(start..at)?.to_vec(), hole));
            start = at + length;
        }
        Some(Self { gate: request.gate, pieces, end: text.as_bytes()[start..].to_vec() })
    }

    fn fill(&self, request: &JobRequest<'_>) -> Result<Vec<u8>, LaunchRefusal> {
        let filling = Filling::of(request)?;
        let mut body = Vec::with_capacity(8 * 1024);
        for (piece, hole) in &self.pieces {
            body.extend_from_slice(piece);
            filling.put(*hole, &mut body);
        }
        body.extend_from_slice(&self.end);
        Ok(body)
    }
}

/// Puts marks into the places of a Job that differ between questions.
fn mark(job: &mut Job, request: &JobRequest<'_>) -> Option<Vec<Hole>> {
    let alone = |hole: Hole| BTreeMap::from([(hole.mark(), String::new())]);
    let (mut labels, mut annotations) = (alone(Hole::Labels), alone(Hole::Annotations));
    put_gate(request.gate, request.service, &mut labels, &mut annotations);
    job.metadata.name = Some(Hole::Name.mark());
    job.metadata.labels = Some(labels);
    job.metadata.annotations = Some(annotations);
    let template = &mut job.spec.as_mut()?.template;
    let metadata = template.metadata.as_mut()?;
    metadata.labels = Some(alone(Hole::PodLabels));
    let mut annotations = alone(Hole::PodAnnotations);
    annotations.insert(SAFE_TO_EVICT.into(), "false".into());
    metadata.annotations = Some(annotations);
    let container = template.spec.as_mut()?.containers.first_mut()?;
    container.args = Some(vec![Hole::Arguments.mark()]);
    let mut holes = vec![
        Hole::Name,
        Hole::Labels,
        Hole::Annotations,
        Hole::PodLabels,
        Hole::PodAnnotations,
        Hole::Arguments,
    ];
    let resources = container.resources.as_mut()?;
    for (amounts, own) in [
        (&mut resources.requests, [Hole::Cpus, Hole::Memory, Hole::Storage]),
        (&mut resources.limits, [Hole::CpusLimit, Hole::MemoryLimit, Hole::StorageLimit]),
    ] {
        for (name, hole) in ["cpu", "memory", "ephemeral-storage"].into_iter().zip(own) {
            if let Some(amount) = amounts.as_mut().and_then(|amounts| amounts.get_mut(name)) {
                *amount = Written(hole.mark());
                holes.push(hole);
            }
        }
    }
    Some(holes)
}

// === impl Hole ===

impl Hole {
    /// A text that is no name and no value in a Job, because it ends with a control character.
    fn mark(self) -> String {
        format!("twined {self:?}\u{1}")
    }

    /// The mark in the JSON, with all that is replaced when the hole is filled.
    fn written(self) -> String {
        let mark = format!("\"twined {self:?}\\u0001\"");
        match self {
            Self::Labels | Self::Annotations | Self::PodLabels | Self::PodAnnotations => {
                format!("{mark}:\"\"")
            }
            Self::Name
            | Self::Arguments
            | Self::Cpus
            | Self::Memory
            | Self::Storage
            | Self::CpusLimit
            | Self::MemoryLimit
            | Self::StorageLimit => mark,
        }
    }
}

// === impl Filling ===

impl<'o> Filling<'o> {
    fn of(request: &'o JobRequest<'o>) -> Result<Self, LaunchRefusal> {
        let JobRequest { launch, service, network, .. } = request;
        let requests = ResourceRequests::from_attributes(
            launch.attributes,
            service,
            launch.recipient.as_sruid(),
        )?;
        let argument = arguments::attributes(launch.attributes);
        check_length(&argument)?;
        let as_they_came = arguments::json(launch.attributes);
        let annotation = quoted(&as_they_came);
        let argument = if argument == as_they_came && !argument.contains('$') {
            annotation.clone()
        } else {
            argument_of(&argument)
        };
        let (mut labels, mut whole) = (Vec::with_capacity(1024), Vec::new());
        labels::for_each_label(launch, network, 0, |name, shown, value| {
            if !labels.is_empty() {
                labels.push(b',');
            }
            member(&mut labels, name, shown);
            if shown != value {
                member(&mut whole, name, value);
                whole.push(b',');
            }
        });
        Ok(Self { request, requests, argument, annotation, labels, whole })
    }

    fn put(&self, hole: Hole, body: &mut Vec<u8>) {
        let ResourceRequests { cpus, memory, ephemeral_storage } = self.requests;
        match hole {
            Hole::Name => text(body, name(self.request.launch.run, 0)),
            Hole::Labels | Hole::PodLabels => body.extend_from_slice(&self.labels),
            Hole::Annotations => {
                self.put_annotations(body);
                body.push(b',');
                member(body, annotation::LAUNCHED, &self.request.launched.to_string());
                body.push(b',');
                member(body, annotation::DEPTH, &self.request.depth.to_string());
            }
            Hole::PodAnnotations => self.put_annotations(body),
            Hole::Arguments => self.put_arguments(body),
            Hole::Cpus => text(body, cpus.request),
            Hole::Memory => text(body, memory.request),
            Hole::Storage => text(body, ephemeral_storage.request),
            Hole::CpusLimit => text(body, kept_to(cpus)),
            Hole::MemoryLimit => text(body, kept_to(memory)),
            Hole::StorageLimit => text(body, kept_to(ephemeral_storage)),
        }
    }

    fn put_annotations(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.whole);
        text(body, annotation::ATTRIBUTES);
        body.push(b':');
        body.extend_from_slice(&self.annotation);
    }

    fn put_arguments(&self, body: &mut Vec<u8>) {
        text(body, ATTRIBUTES_OPTION);
        body.push(b',');
        body.extend_from_slice(&self.argument);
        let inputs = self.request.launch.inputs;
        for (option, value) in
            [(VALUES_OPTION, inputs.input_values), (MANIFEST_OPTION, inputs.input_manifest)]
        {
            if let Some(value) = value {
                body.push(b',');
                text(body, option);
                body.push(b',');
                body.extend_from_slice(&argument_of(value));
            }
        }
    }
}

/// A template has the hole of a limit only if the settings have that limit.
fn kept_to(share: RequestAndLimit) -> Quantity {
    share.limit.unwrap_or(share.request)
}

fn json(job: &Job) -> Vec<u8> {
    serde_json::to_vec(job).expect("a Job is JSON")
}

/// What needs no escapes, in quotes.
fn text(body: &mut Vec<u8>, text: impl Display) {
    write!(body, "\"{text}\"").expect("writing to memory does not fail");
}

/// A name of ours, and any text.
fn member(body: &mut Vec<u8>, name: &str, value: &str) {
    text(body, name);
    body.push(b':');
    serde_json::to_writer(body, value).expect("a text is JSON");
}

fn quoted(text: &str) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(text.len() + text.len() / 4 + 16);
    serde_json::to_writer(&mut quoted, text).expect("a text is JSON");
    quoted
}

fn argument_of(text: &str) -> Vec<u8> {
    if text.contains('$') { quoted(&text.replace('$', "$$")) } else { quoted(text) }
}
