//! Images that cannot be had, by what registries, runtimes and kubelets say of them.

use super::{AT_ONCE, MADE_LATER, PASSES, SOON, Stuck, text};
use crate::runner::EndReason;
use std::time::Duration;

/// With what a kubelet says that a container waits for its image.
pub const KUBELET: [&str; 7] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];

/// What a message says of an image: known words of it, our reason, how long it is given, what
/// that means, and the remedy. The first row that fits is taken, so what is surer comes first:
/// a registry that limits its answers is no missing image, though its text may have both words.
struct Known(&'static [&'static str], EndReason, Duration, &'static str, &'static str);

const KNOWN: [Known; 9] = [
    Known(
        &["no space left on device", "disk quota exceeded"],
        EndReason::Image,
        PASSES,
        "the node has no disk left for it",
        "ask again, or give the nodes larger disks",
    ),
    Known(
        &["toomanyrequests", "too many requests", "rate limit", "quota exceeded", "qps exceeded"],
        EndReason::Image,
        PASSES,
        "its registry answers no more pulls for now",
        "ask again later, or let the cluster pull with an account of its own",
    ),
    Known(
        &["no match for platform", "no image found in", "no matching manifest"],
        EndReason::Image,
        SOON,
        "it is not built for the processor of the node",
        "build it for that platform too (`docker build --platform`), or choose other nodes in the \
         service's settings",
    ),
    Known(
        &["is no longer supported", "unsupported manifest", "unsupported media type"],
        EndReason::Image,
        SOON,
        "its format is one that the node does not read",
        "build and push it again with a newer tool",
    ),
    Known(
        &["signature validation failed", "signaturevalidationfailed", "source image rejected"],
        EndReason::Image,
        SOON,
        "its signature is not one that the cluster accepts",
        "sign the image, or let the cluster's policy accept it",
    ),
    Known(
        &[
            "unexpected eof",
            "timeout",
            "timed out",
            "deadline exceeded",
            "connection refused",
            "connection reset",
            "no such host",
            "no route to host",
            "network is unreachable",
            "failed to do request",
            "server misbehaving",
            "tls handshake",
            "x509:",
            "broken pipe",
            "registry is unavailable",
            "registryunavailable",
            "502 bad gateway",
            "500 internal",
            "503 service",
            "504 gateway",
            "status: 50",
            "temporary failure",
            "context canceled",
        ],
        EndReason::Image,
        PASSES,
        "its registry cannot be reached from the node, or fails",
        "ask again; where that does not help, see the registry and the node's network",
    ),
    Known(
        &[
            "unauthorized",
            "pull access denied",
            "access denied",
            "denied",
            "forbidden",
            "authentication required",
            "authorization failed",
            "no basic auth credentials",
            "may require authorization",
            "insufficient_scope",
            "permission",
        ],
        EndReason::Image,
        MADE_LATER,
        "its registry does not let the cluster have it, or has no such repository",
        "check the image's name, and let the nodes' account read the repository, or name a pull \
         secret in the service's settings",
    ),
    Known(
        &[
            "failed to extract layer",
            "wrong diff id",
            "failed commit on ref",
            "unexpected commit",
            "invalid tar header",
            "gzip: invalid",
            "unexpected size",
            "failed size validation",
            "checksum",
            "digest mismatch",
            "failed to register layer",
        ],
        EndReason::Image,
        Duration::from_secs(300),
        "its layers cannot be unpacked: they are damaged",
        "push the image again; where that does not help, see the node's disk",
    ),
    Known(
        &["not found", "manifest unknown", "name unknown", "does not exist", "no such image"],
        EndReason::NoImage,
        SOON,
        "there is no such image",
        "push the image of that revision, or ask a revision that is there",
    ),
];

/// Why a container does not get its image. `kubelet` is the kubelet's word for its state.
pub fn refused(who: &str, image: &str, kubelet: &str, said: &str) -> Stuck {
    match kubelet {
        "InvalidImageName" => {
            let why = "that is no name of an image";
            let remedy = "check the revision tag and the image's name in the service's settings";
            Stuck::new(EndReason::NoImage, AT_ONCE, told(who, image, why, said, remedy))
        }
        "ErrImageNeverPull" => {
            let why = "it is not on the node, and its pull policy is `Never`";
            let remedy = "load the image into the nodes, or change the pull policy";
            Stuck::new(EndReason::Image, SOON, told(who, image, why, said, remedy))
        }
        "RegistryUnavailable" => pull(who, image, &format!("registry is unavailable: {said}")),
        "SignatureValidationFailed" => {
            pull(who, image, &format!("signature validation failed: {said}"))
        }
        _ => pull(who, image, said),
    }
}

/// Why a pull failed, from what is said of it.
pub fn pull(who: &str, image: &str, said: &str) -> Stuck {
    let plain = without_names(said, image);
    let known = KNOWN.iter().find(|Known(texts, ..)| text::says(&plain, texts));
    match known {
        Some(Known(_, reason, patience, why, remedy)) => {
            Stuck::new(*reason, *patience, told(who, image, why, said, remedy))
        }
        None => {
            let why = "the node fails to pull it";
            let remedy = "ask again; where that does not help, see the image, its registry and the \
                          node";
            let message = told(who, image, why, said, remedy);
            let vague = !text::says(&plain, &["error:", "errimagepull", "failed"]);
            Stuck { vague, ..Stuck::new(EndReason::Image, PASSES, message) }
        }
    }
}

/// What a message says last: before that, each layer of it names the image once more.
fn cause<'a>(said: &'a str, image: &str) -> &'a str {
    let named = format!("{image}\": ");
    said.rsplit_once(&named).map_or(said, |(_, cause)| cause)
}

/// A message without addresses and the image's own name, which must not be taken for a cause.
fn without_names(said: &str, image: &str) -> String {
    let name = image.split(['@', ':']).next().unwrap_or_default();
    let words = said.split_whitespace().filter(|word| !word.contains("://"));
    let plain = words.collect::<Vec<_>>().join(" ");
    if name.is_empty() { plain } else { plain.replace(image, "").replace(name, "") }
}

fn told(who: &str, image: &str, why: &str, said: &str, remedy: &str) -> String {
    let said = text::aside("the node says", cause(said, image));
    let image = text::quote(image);
    format!("{who} could not be started from the image `{image}`: {why}{said}; {remedy}")
}
