//! The table of symptoms: what the messages of a cluster mean for a run.
//!
//! Kubelets, container runtimes, schedulers and the API server write their messages for people, and
//! differ by version. So a row matches fragments of a message, and a message that no row knows is
//! quoted. The first row that matches wins, so the surer one comes first: a registry that limits
//! its answers is no missing image, though its message may contain the words of both.

use super::text;
use crate::runner::EndReason;
use std::time::Duration;

/// For a cause that does not change by itself.
pub(super) const NONE: Duration = Duration::ZERO;

/// For an object that was created a moment ago, and is not visible everywhere yet.
pub(super) const BRIEF: Duration = Duration::from_secs(30);

/// For an object that may be created a moment later: our Secrets come after the Job that owns them.
pub(super) const CREATED_LATER: Duration = Duration::from_secs(120);

/// For a cause that usually passes by itself: a registry that is down, a node that is busy.
pub(super) const PASSES: Duration = Duration::from_secs(900);

/// One symptom.
#[derive(Debug)]
pub(super) struct Symptom {
    /// Fragments in lower case. A message matches that contains one fragment of each group; a row
    /// without groups matches every message.
    pub(super) fragments: &'static [&'static [&'static str]],
    /// The reason of the run's end.
    pub(super) reason: EndReason,
    /// How long the symptom must last, without a break, before the run is ended for it.
    pub(super) grace: Duration,
    /// What the symptom means: part of a sentence.
    pub(super) meaning: &'static str,
    /// What to do about it: part of a sentence, in the imperative.
    pub(super) remedy: &'static str,
}

impl Symptom {
    /// Whether a message shows the symptom.
    pub(super) fn matches(&self, message: &str) -> bool {
        self.fragments.iter().all(|group| text::contains_any(message, group))
    }
}

/// The first symptom that a message shows.
pub(super) fn find(table: &'static [Symptom], message: &str) -> Option<&'static Symptom> {
    table.iter().find(|symptom| symptom.matches(message))
}

/// The symptom that a message shows, of a table whose last row matches every message.
pub(super) fn classify(table: &'static [Symptom], message: &str) -> &'static Symptom {
    find(table, message).expect("the table's last row matches every message")
}

/// An image that cannot be pulled. The image's own name must not be part of the message.
pub(super) const IMAGE_PULL: &[Symptom] = &[
    Symptom {
        fragments: &[&["no space left on device", "disk quota exceeded"]],
        reason: EndReason::Image,
        grace: PASSES,
        meaning: "the node has no disk left for it",
        remedy: "ask again, or give the nodes larger disks",
    },
    Symptom {
        fragments: &[&[
            "toomanyrequests",
            "too many requests",
            "rate limit",
            "quota exceeded",
            "qps exceeded",
        ]],
        reason: EndReason::Image,
        grace: PASSES,
        meaning: "its registry answers no more pulls for now",
        remedy: "ask again later, or let the cluster pull with an account of its own",
    },
    Symptom {
        fragments: &[&["no match for platform", "no image found in", "no matching manifest"]],
        reason: EndReason::Image,
        grace: BRIEF,
        meaning: "it is not built for the processor of the node",
        remedy: "build it for that platform too (`docker build --platform`), or choose other nodes \
                 in the service's settings",
    },
    Symptom {
        fragments: &[&["is no longer supported", "unsupported manifest", "unsupported media type"]],
        reason: EndReason::Image,
        grace: BRIEF,
        meaning: "its format is one that the node does not read",
        remedy: "build and push it again with a newer tool",
    },
    Symptom {
        fragments: &[&[
            "signature validation failed",
            "signaturevalidationfailed",
            "source image rejected",
        ]],
        reason: EndReason::Image,
        grace: BRIEF,
        meaning: "its signature is not one that the cluster accepts",
        remedy: "sign the image, or let the cluster's policy accept it",
    },
    Symptom {
        fragments: &[&[
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
        ]],
        reason: EndReason::Image,
        grace: PASSES,
        meaning: "its registry cannot be reached from the node, or fails",
        remedy: "ask again; where that does not help, see the registry and the node's network",
    },
    Symptom {
        fragments: &[&[
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
        ]],
        reason: EndReason::Image,
        grace: CREATED_LATER,
        meaning: "its registry does not let the cluster have it, or has no such repository",
        remedy: "check the image's name, and let the nodes' account read the repository, or name a \
                 pull secret in the service's settings",
    },
    Symptom {
        fragments: &[&[
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
        ]],
        reason: EndReason::Image,
        // A node fetches damaged layers anew; a registry's own copy may be the damaged one.
        grace: Duration::from_secs(300),
        meaning: "its layers cannot be unpacked: they are damaged",
        remedy: "push the image again; where that does not help, see the node's disk",
    },
    Symptom {
        fragments: &[&[
            "not found",
            "manifest unknown",
            "name unknown",
            "does not exist",
            "no such image",
        ]],
        reason: EndReason::NoImage,
        grace: BRIEF,
        meaning: "there is no such image",
        remedy: "push the image of that revision, or ask a revision that is there",
    },
    Symptom {
        fragments: &[],
        reason: EndReason::Image,
        grace: PASSES,
        meaning: "the node fails to pull it",
        remedy: "ask again; where that does not help, see the image, its registry and the node",
    },
];

/// A container whose image has no valid name.
pub(super) const INVALID_IMAGE_NAME: Symptom = Symptom {
    fragments: &[],
    reason: EndReason::NoImage,
    grace: NONE,
    meaning: "that is no name of an image",
    remedy: "check the revision tag and the image's name in the service's settings",
};

/// A container whose image may not be pulled.
pub(super) const IMAGE_NEVER_PULLED: Symptom = Symptom {
    fragments: &[],
    reason: EndReason::Image,
    grace: BRIEF,
    meaning: "it is not on the node, and its pull policy is `Never`",
    remedy: "load the image into the nodes, or change the pull policy",
};

const FIX_ENTRY_POINT: &str =
    "mend the image's entry point, or the command in the service's settings";

const SEE_IMAGE_AND_NODE: &str = "ask again; where that does not help, see the image and the node";

/// A container that its runtime (runc, crun, a shim) could not start. "no such file" is part of
/// many messages, so its row comes late.
pub(super) const CONTAINER_START: &[Symptom] = &[
    Symptom {
        // An earlier call creates the same container, on a node that is slow.
        fragments: &[&["context deadline exceeded", "failed to reserve container name"]],
        reason: EndReason::NotStarted,
        grace: PASSES,
        meaning: "its node is too slow",
        remedy: SEE_IMAGE_AND_NODE,
    },
    Symptom {
        fragments: &[&["argument list too long"]],
        reason: EndReason::NotStarted,
        grace: CREATED_LATER,
        meaning: "what it is given in arguments and environment is longer than the system allows",
        remedy: "ask with less, or give large values in a file",
    },
    Symptom {
        fragments: &[&["exec format error"]],
        reason: EndReason::Image,
        grace: CREATED_LATER,
        meaning: "its programs are not built for the processor of the node, or have no `#!` line",
        remedy: "build it for that platform (`docker build --platform`), or choose other nodes in \
                 the service's settings",
    },
    Symptom {
        fragments: &[&["error mounting", "subpath", "failed to mount"]],
        reason: EndReason::Volume,
        grace: CREATED_LATER,
        meaning: "a volume cannot be put where it is wanted in it",
        remedy: "see the volumes in the service's settings",
    },
    Symptom {
        fragments: &[&["no space left on device"]],
        reason: EndReason::NotStarted,
        grace: CREATED_LATER,
        meaning: "the node has no disk left",
        remedy: "ask again",
    },
    Symptom {
        fragments: &[&["chdir to cwd", "working directory"]],
        reason: EndReason::NotStarted,
        grace: CREATED_LATER,
        meaning: "the working directory that it wants is not there",
        remedy: FIX_ENTRY_POINT,
    },
    Symptom {
        fragments: &[&["no command specified", "no command or entrypoint"]],
        reason: EndReason::NotStarted,
        grace: CREATED_LATER,
        meaning: "it names no command",
        remedy: FIX_ENTRY_POINT,
    },
    Symptom {
        fragments: &[&[
            "executable file not found",
            "executable file `",
            "no such file or directory",
        ]],
        reason: EndReason::NotStarted,
        grace: CREATED_LATER,
        meaning: "its command is not in it, or the interpreter that its `#!` line names",
        remedy: FIX_ENTRY_POINT,
    },
    Symptom {
        fragments: &[&["permission denied"]],
        reason: EndReason::NotStarted,
        grace: CREATED_LATER,
        meaning: "its command may not be executed",
        remedy: FIX_ENTRY_POINT,
    },
    Symptom {
        fragments: &[],
        reason: EndReason::NotStarted,
        grace: CREATED_LATER,
        meaning: "its node fails to do it",
        remedy: SEE_IMAGE_AND_NODE,
    },
];

/// An image that runs as root where nothing may.
pub(super) const RUNS_AS_ROOT: Symptom = Symptom {
    fragments: &[&["runasnonroot"]],
    reason: EndReason::NotStarted,
    grace: BRIEF,
    meaning: "it runs as root, or does not name its user by number, and the cluster lets nothing \
              run as root",
    remedy: "set a numeric user in the image (`USER 1000`)",
};

/// A container whose settings want something that its node cannot give.
pub(super) const CONTAINER_CONFIG: &[Symptom] = &[
    Symptom {
        fragments: &[&["context deadline exceeded", "failed to reserve container name"]],
        reason: EndReason::NotStarted,
        grace: PASSES,
        meaning: "what its settings want cannot be had",
        remedy: "see its environment, secrets and volumes in the service's settings",
    },
    Symptom {
        fragments: &[],
        reason: EndReason::NotStarted,
        grace: CREATED_LATER,
        meaning: "what its settings want cannot be had",
        remedy: "see its environment, secrets and volumes in the service's settings",
    },
];

/// A hook around the start of a container that failed.
pub(super) const HOOK: Symptom = Symptom {
    fragments: &[],
    reason: EndReason::NotStarted,
    grace: CREATED_LATER,
    meaning: "a hook around its start failed",
    remedy: "see the hooks in the service's settings",
};

/// How a kubelet reports that a Secret, a ConfigMap, or a key of one does not exist.
const MISSING: &[&str] = &["not found", "couldn't find key", "non-existent"];

const CREATE_IT: &str =
    "create it in the namespace of the questions, or see the service's settings";

/// An object that a pod mounts or reads its environment from, and that does not exist.
pub(super) const MISSING_OBJECT: &[Symptom] = &[
    Symptom {
        fragments: &[MISSING, &["secret"]],
        reason: EndReason::Volume,
        grace: CREATED_LATER,
        meaning: "a secret, or a key of it, that its settings want is not there",
        remedy: CREATE_IT,
    },
    Symptom {
        fragments: &[MISSING, &["configmap"]],
        reason: EndReason::Volume,
        grace: CREATED_LATER,
        meaning: "a configuration (ConfigMap), or a key of it, that its settings want is not there",
        remedy: CREATE_IT,
    },
    Symptom {
        fragments: &[MISSING, &["config key"]],
        reason: EndReason::Volume,
        grace: CREATED_LATER,
        meaning: "a key of a configuration (ConfigMap) that its settings want is not there",
        remedy: CREATE_IT,
    },
    Symptom {
        fragments: &[MISSING, &["persistentvolumeclaim"]],
        reason: EndReason::Volume,
        grace: CREATED_LATER,
        meaning: "a volume claim that its settings want is not there",
        remedy: CREATE_IT,
    },
];

/// A volume that cannot be mounted.
pub(super) const VOLUME_MOUNT: &[Symptom] = &[
    Symptom {
        fragments: &[&[
            "permissiondenied",
            "permission denied",
            "unauthenticated",
            "access denied",
            "forbidden",
        ]],
        reason: EndReason::Volume,
        grace: CREATED_LATER,
        meaning: "a volume that its settings want may not be used by it",
        remedy: "let its service account, or the nodes, use it",
    },
    Symptom {
        fragments: &[],
        reason: EndReason::Volume,
        grace: PASSES,
        meaning: "a volume that its settings want cannot be mounted",
        remedy: "ask again, and where that does not help, see the volumes in the service's settings",
    },
];

const WHEN_FREE: &str = "ask again when it is free, or see the volumes in the service's settings";

/// A volume that cannot be attached to a node.
pub(super) const VOLUME_ATTACH: &[Symptom] = &[
    Symptom {
        fragments: &[&["multi-attach", "already used by", "in use by", "already attached"]],
        reason: EndReason::Volume,
        grace: PASSES,
        meaning: "a volume that its settings want cannot be attached: another node has it, and it \
                  can be on one at a time",
        remedy: WHEN_FREE,
    },
    Symptom {
        fragments: &[],
        reason: EndReason::Volume,
        grace: PASSES,
        meaning: "a volume that its settings want cannot be attached: its node cannot have it",
        remedy: WHEN_FREE,
    },
];

/// A volume claim for which the scheduler holds a pod.
pub(super) const VOLUME_CLAIM: &[Symptom] = &[
    Symptom {
        fragments: &[&["unbound immediate persistentvolumeclaims"]],
        reason: EndReason::Volume,
        grace: PASSES,
        meaning: "a volume claim that its settings want gets no volume",
        remedy: "see the claim and its storage class",
    },
    Symptom {
        fragments: &[
            &["persistentvolumeclaim \""],
            &["not found", "is being deleted", "non-existent", "is lost"],
        ],
        reason: EndReason::Volume,
        grace: CREATED_LATER,
        meaning: "a volume claim that its settings want is not there",
        remedy: "create it, or see the volumes in the service's settings",
    },
];

const ASK_AGAIN_OR_SEE_NODE: &str = "ask again, and where that does not help, see the node";

/// The sandbox of a pod, and its network.
pub(super) const SANDBOX: &[Symptom] = &[
    Symptom {
        fragments: &[&["no runtime for", "runtimehandler", "runtimeclass"]],
        reason: EndReason::NotStarted,
        grace: CREATED_LATER,
        meaning: "its node does not have the container runtime that its settings want",
        remedy: "see the runtime class and the node selector in the service's settings",
    },
    Symptom {
        fragments: &[&["oom-killed", "memory limit too low"]],
        reason: EndReason::Memory,
        grace: BRIEF,
        meaning: "its limit of memory is too low for its pod to begin in",
        remedy: "ask again with more `memory`, or raise the limit in the service's settings",
    },
    Symptom {
        fragments: &[&["network", "cni", "ip address", "no ip addresses", "address range"]],
        reason: EndReason::NotStarted,
        grace: PASSES,
        meaning: "its node cannot give it a network (it may have no address left)",
        remedy: ASK_AGAIN_OR_SEE_NODE,
    },
    Symptom {
        fragments: &[],
        reason: EndReason::NotStarted,
        grace: PASSES,
        meaning: "its node cannot make its sandbox",
        remedy: ASK_AGAIN_OR_SEE_NODE,
    },
];

/// A device that a node cannot prepare.
pub(super) const DEVICE: Symptom = Symptom {
    fragments: &[],
    reason: EndReason::NotStarted,
    grace: PASSES,
    meaning: "its node cannot give it a device that it wants",
    remedy: "ask again, and where that does not help, see the node's drivers",
};

/// A pod that the API server does not let the Job controller create. The controller tries again.
pub(super) const POD_CREATION: &[Symptom] = &[
    Symptom {
        fragments: &[&["exceeded quota"]],
        reason: EndReason::Denied,
        grace: PASSES,
        meaning: "the namespace's quota has no room for it",
        remedy: "ask when others have ended, ask for less, or raise the ResourceQuota",
    },
    Symptom {
        fragments: &[&["failed quota", "must specify"]],
        reason: EndReason::Denied,
        grace: BRIEF,
        meaning: "the namespace's quota wants requests or limits that it does not have",
        remedy: "set them in the service's settings",
    },
    Symptom {
        fragments: &[&[
            "violates podsecurity",
            "pod security",
            "podsecuritypolic",
            "security context constraint",
        ]],
        reason: EndReason::Denied,
        grace: BRIEF,
        meaning: "it breaks the namespace's rules of pod security",
        remedy: "see the image and the service's settings, or the namespace's `pod-security` labels",
    },
    Symptom {
        fragments: &[&["serviceaccount", "service account"]],
        reason: EndReason::Denied,
        grace: CREATED_LATER,
        meaning: "the service account that it wants is not there",
        remedy: "create the account in the namespace of the questions, or see the service's \
                 settings",
    },
    Symptom {
        fragments: &[&[
            "usage per container",
            "usage per pod",
            "limit to request ratio",
            "limitrange",
        ]],
        reason: EndReason::Denied,
        grace: BRIEF,
        meaning: "it asks for more or less than the namespace's LimitRange lets one have",
        remedy: "ask for what is allowed, or change the LimitRange",
    },
    Symptom {
        fragments: &[&["priorityclass"]],
        reason: EndReason::Denied,
        grace: CREATED_LATER,
        meaning: "the priority class that it wants is not there",
        remedy: "create it, or see the service's settings",
    },
    Symptom {
        fragments: &[&["runtimeclass"]],
        reason: EndReason::Denied,
        grace: CREATED_LATER,
        meaning: "the runtime class that it wants is not there",
        remedy: "create it, or see the service's settings",
    },
    Symptom {
        fragments: &[&[
            "failed calling webhook",
            "failed to call webhook",
            "timeout",
            "deadline exceeded",
            "etcdserver",
            "connection refused",
            "too many requests",
        ]],
        reason: EndReason::Denied,
        grace: PASSES,
        meaning: "the cluster cannot decide on it now",
        remedy: "ask again; where that does not help, see the cluster's webhooks and API server",
    },
    Symptom {
        fragments: &[&["denied the request", "validatingadmissionpolicy", "denied by"]],
        reason: EndReason::Denied,
        grace: BRIEF,
        meaning: "a policy of the cluster does not let it be made",
        remedy: "see what the policy wants",
    },
    Symptom {
        fragments: &[&["being terminated"]],
        reason: EndReason::Denied,
        grace: BRIEF,
        meaning: "the namespace of the questions is being deleted",
        remedy: "create it again",
    },
    Symptom {
        fragments: &[&["is invalid", "invalid value"]],
        reason: EndReason::Denied,
        grace: BRIEF,
        meaning: "the API server finds it invalid",
        remedy: "see what is asked for, and the service's settings",
    },
    Symptom {
        fragments: &[],
        reason: EndReason::Denied,
        grace: PASSES,
        meaning: "the cluster does not take it",
        remedy: "see the cluster's rules",
    },
];

/// Why no node fits a pod. A message may show several of these; all of them are reported.
pub(super) const SCHEDULING: &[Symptom] = &[
    no_node(&[&["insufficient cpu"]], "not enough free CPUs", "ask for fewer `cpus`"),
    no_node(&[&["insufficient memory"]], "not enough free memory", "ask for less `memory`"),
    no_node(
        &[&["insufficient ephemeral-storage"]],
        "not enough free disk",
        "ask for less `ephemeral_storage`",
    ),
    no_node(
        &[&[
            "insufficient nvidia.com/",
            "insufficient amd.com/",
            "insufficient google.com/tpu",
            "insufficient gpu.",
        ]],
        "no free accelerator of the kind that it wants",
        "add nodes with that accelerator, or change it in the service's settings",
    ),
    no_node(&[&["too many pods"]], "no place for one more pod", "add nodes"),
    no_node(
        &[&[
            "node affinity/selector",
            "node selector",
            "node affinity",
            "incompatible with nodepool",
        ]],
        "no node of the kind that its settings want",
        "see the node selector in the service's settings",
    ),
    no_node(
        &[&["taint"]],
        "only nodes with a taint that it does not tolerate",
        "see the tolerations in the service's settings",
    ),
    no_node(
        &[&["were unschedulable"]],
        "only nodes that are closed to new pods",
        "uncordon a node, or wait for the upgrade to end",
    ),
    no_node(
        &[&[
            "persistentvolume",
            "persistent volume",
            "pvc",
            "volume node affinity",
            "max volume count",
            "available volume zone",
            "free storage",
        ]],
        "no node that can have its volume",
        "see the volumes in the service's settings",
    ),
    no_node(
        &[&["affinity rules", "topology spread", "free ports", "no available disk"]],
        "no node that its rules of placement allow",
        "see the service's settings",
    ),
    no_node(&[&["no nodes available", "0/0 nodes"]], "no nodes at all", "add nodes"),
];

/// What the cluster lacks for a pod that no node fits.
const fn no_node(
    fragments: &'static [&'static [&'static str]],
    meaning: &'static str,
    remedy: &'static str,
) -> Symptom {
    Symptom { fragments, reason: EndReason::Unschedulable, grace: PASSES, meaning, remedy }
}

/// How an autoscaler reports that it would help, but cannot now: then waiting is right.
pub(super) const AUTOSCALER_WAITS: &[&str] = &[
    "in backoff",
    "backoff after failed scale-up",
    "max node group size reached",
    "max cluster",
    "not ready for scale-up",
    "limit reached",
    "out of resources",
];

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: [&[Symptom]; 11] = [
        IMAGE_PULL,
        CONTAINER_START,
        CONTAINER_CONFIG,
        MISSING_OBJECT,
        VOLUME_MOUNT,
        VOLUME_ATTACH,
        VOLUME_CLAIM,
        SANDBOX,
        POD_CREATION,
        SCHEDULING,
        &[INVALID_IMAGE_NAME, IMAGE_NEVER_PULLED, RUNS_AS_ROOT, HOOK, DEVICE],
    ];

    #[test]
    fn every_fragment_can_match_and_every_text_fits_into_a_sentence() {
        for symptom in TABLES.into_iter().flatten() {
            for fragment in symptom.fragments.iter().copied().flatten() {
                assert_eq!(*fragment, fragment.to_lowercase(), "matched against lower case");
            }
            for text in [symptom.meaning, symptom.remedy] {
                assert!(!text.is_empty() && !text.contains("  "), "{text}");
                assert!(!text.ends_with(['.', ';', ' ']), "{text}");
            }
        }
    }
}
