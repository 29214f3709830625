use super::*;
use crate::event::Inputs;
use crate::runner::kubernetes::settings::{RelaunchPolicy, ServiceFields};
use serde_json::{Value, json};
use std::time::Duration;

mod followed;
mod mounted;

const QUESTION: &str = "2f1b8f3c-6ec5-4bb1-9a3b-0d6a1f0f6c11";
const PARENT: &str = "81f35b28-068b-4314-9eeb-e55e60d0fe8a";

/// A question, with all that a Job is made from.
struct World {
    settings: NetworkSettings,
    network: JobDefaults,
    recipient: SruidBuf,
    attributes: HashMap<String, String>,
    inputs: Inputs<'static>,
    retry: u32,
}

impl World {
    fn new(settings: &str) -> Self {
        let attributes = [
            ("uuid", "a3a0e0a2-7c1e-4c7e-8a52-b3d0a5d0b001"),
            ("datetime", "2024-04-11T10:46:48.236064+00:00"),
            ("question_uuid", QUESTION),
            ("parent_question_uuid", PARENT),
            ("originator_question_uuid", PARENT),
            ("parent", "octue/wind-speed:0.1.2"),
            ("originator", "local/local:local"),
            ("sender", "octue/wind-speed:0.1.2"),
            ("recipient", "octue/elevation:1.20.3"),
            ("sender_type", "PARENT"),
            ("sender_sdk_version", "0.69.1"),
            ("save_diagnostics", "SAVE_DIAGNOSTICS_ON_CRASH"),
        ];
        Self {
            settings: NetworkSettings::read(settings, ServiceFields::default()).unwrap(),
            network: JobDefaults {
                namespace: "default".into(),
                images: "europe-docker.pkg.dev/project/services".into(),
                topic: "main.octue.twined.services".into(),
                environment: vec![("PUBSUB_EMULATOR_HOST".into(), "10.0.0.1:8085".into())],
            },
            recipient: "octue/elevation:1.20.3".parse().unwrap(),
            attributes: attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            inputs: Inputs { input_values: Some("[1, NaN]"), input_manifest: None, children: None },
            retry: 0,
        }
    }

    fn asking(mut self, name: &str, value: &str) -> Self {
        self.attributes.insert(name.to_owned(), value.to_owned());
        self
    }

    fn service(&self) -> Arc<ServiceSettings> {
        self.settings.service(&self.recipient)
    }

    /// Calls `act` with the request for the Job of this question.
    fn with<T>(&self, act: impl FnOnce(&JobRequest<'_>) -> T) -> T {
        let service = self.service();
        act(&JobRequest {
            launch: LaunchRequest {
                run: RunId { question: QUESTION.parse().unwrap(), retry: self.retry },
                recipient: &self.recipient,
                parent_question: Some(PARENT.parse().unwrap()),
                attributes: &self.attributes,
                inputs: self.inputs,
            },
            service: &service,
            network: &self.network,
            gate: Gate::for_service(&self.settings, &service),
            depth: 1,
            launched: Timestamp(1_712_832_408_236_064),
            nonce: 0xabc,
        })
    }

    fn job(&self) -> Job {
        self.with(manifest).unwrap()
    }

    /// The Job of the attempt that follows that of `job`, at time 0.
    fn next_attempt(&self, job: &Job, policy: &RelaunchPolicy) -> Option<Job> {
        let service = self.service();
        let next = AttemptRequest {
            attempt: 1,
            service: &service,
            policy,
            network: &self.network,
            gate: Gate::for_service(&self.settings, &service),
            launched: Timestamp(0),
        };
        next_attempt(job, &next)
    }

    fn refused(&self) -> LaunchRefusal {
        self.with(manifest).unwrap_err()
    }
}

fn value(job: &Job) -> Value {
    serde_json::to_value(job).unwrap()
}

const CONTAINER_AT: &str = "/spec/template/spec/containers/0";

#[test]
fn the_job_is_as_the_sdk_expects() {
    let world = World::new("defaults: {service_account: octue}");
    let value = value(&world.job());
    let attributes = arguments::attributes(&world.attributes);

    for (at, expected) in [
        ("/metadata/name", json!(format!("question-{QUESTION}"))),
        ("/metadata/namespace", json!("default")),
        ("/spec/parallelism", json!(1)),
        ("/spec/completions", json!(1)),
        ("/spec/backoffLimit", json!(0)),
        ("/spec/suspend", json!(false)),
        ("/spec/ttlSecondsAfterFinished", json!(86_400)),
        (
            "/spec/podFailurePolicy/rules",
            json!([{
                "action": "Ignore",
                "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]
            }]),
        ),
        ("/spec/template/spec/restartPolicy", json!("Never")),
        ("/spec/template/spec/serviceAccountName", json!("octue")),
        ("/spec/template/spec/terminationGracePeriodSeconds", json!(3)),
        ("/spec/template/spec/activeDeadlineSeconds", json!(604_800)),
        ("/spec/template/spec/automountServiceAccountToken", json!(false)),
    ] {
        assert_eq!(value.pointer(at), Some(&expected), "{at}");
    }
    assert_eq!(
        value.pointer(CONTAINER_AT).unwrap(),
        &json!({
            "name": "question",
            "image": "europe-docker.pkg.dev/project/services/octue/elevation:1.20.3",
            "command": ["octue", "twined", "question", "ask-local"],
            "args": ["--attributes", attributes, "--input-values", "[1, NaN]"],
            "env": [
                {"name": "PUBSUB_EMULATOR_HOST", "value": "10.0.0.1:8085"},
                {"name": "TWINED_SERVICES_TOPIC_NAME", "value": "main.octue.twined.services"},
                {"name": "COMPUTE_PROVIDER", "value": "GOOGLE_KUEUE"},
                {"name": "OCTUE_SERVICE_REVISION_TAG", "value": "1.20.3"},
            ],
            "resources": {
                "requests": {"cpu": "1", "memory": "512Mi", "ephemeral-storage": "1Gi"}
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "privileged": false,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationMessagePolicy": "FallbackToLogsOnError",
        })
    );
    assert!(
        attributes.contains(r#""forward_logs":"0""#) && attributes.contains(r#""retry_count":"0""#)
    );
}

#[test]
fn labels_and_annotations_identify_the_job_and_its_pod() {
    let world = World::new("");
    let value = value(&world.job());
    let labels = json!({
        "app.kubernetes.io/managed-by": "twined",
        "twined.octue.com/topic": "main.octue.twined.services",
        "twined.octue.com/question": QUESTION,
        "twined.octue.com/parent-question": PARENT,
        "twined.octue.com/originator-question": PARENT,
        "twined.octue.com/parent": "octue.wind-speed",
        "twined.octue.com/originator": "local.local",
        "twined.octue.com/service": "octue.elevation",
        "twined.octue.com/revision": "1.20.3",
        "twined.octue.com/retry": "0",
        "twined.octue.com/attempt": "0",
    });
    let came = arguments::json(&world.attributes);
    assert_eq!(value["metadata"]["labels"], labels);
    assert_eq!(
        value["metadata"]["annotations"],
        json!({
            "twined.octue.com/attributes": came,
            "twined.octue.com/launched": "2024-04-11T10:46:48.236064+00:00",
            "twined.octue.com/depth": "1",
        })
    );
    let pod = &value["spec"]["template"]["metadata"];
    assert_eq!(pod["labels"], labels);
    assert_eq!(
        pod["annotations"],
        json!({
            "twined.octue.com/attributes": came,
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        })
    );
}

#[test]
fn a_value_too_long_for_a_label_is_in_an_annotation() {
    let mut world = World::new("");
    let tag = format!("_{}", "a".repeat(100));
    world.recipient = format!("octue/elevation:{tag}").parse().unwrap();
    let metadata = world.job().metadata;
    let labels = metadata.labels.unwrap();
    assert_eq!(labels[label::REVISION], label_value(&tag));
    assert_eq!(metadata.annotations.unwrap()[label::REVISION], tag);
}

#[test]
fn a_dollar_sign_arrives_unchanged() {
    let mut world = World::new("defaults: {environment: {PRICE: $(HOME) $$5}}");
    world.inputs.input_values = Some(r#""$(HOME) $$5""#);
    let value = value(&world.job());
    let container = value.pointer(CONTAINER_AT).unwrap();
    assert_eq!(container["args"][3], r#""$$(HOME) $$$$5""#);
    assert_eq!(container["env"][1]["value"], "$$(HOME) $$$$5");
}

#[test]
fn a_missing_input_is_no_argument_and_null_is() {
    let mut world = World::new("");
    for (inputs, count) in [
        (Inputs::default(), 2),
        (Inputs { input_values: Some("null"), ..Inputs::default() }, 4),
        (Inputs { input_values: Some("0"), input_manifest: Some("{}"), children: None }, 6),
    ] {
        world.inputs = inputs;
        let args = value(&world.job()).pointer(CONTAINER_AT).unwrap()["args"].clone();
        assert_eq!(args.as_array().unwrap().len(), count);
    }
}

#[test]
fn a_question_gets_what_it_asks_for() {
    let world = World::new("defaults: {memory: {limit: request}, cpus: {limit: 4}}")
        .asking("cpus", "8")
        .asking("memory", "1e9")
        .asking("ephemeral_storage", "1.5Gi");
    let resources = value(&world.job()).pointer(CONTAINER_AT).unwrap()["resources"].clone();
    assert_eq!(
        resources,
        json!({
            "requests": {"cpu": "8", "memory": "1G", "ephemeral-storage": "1536Mi"},
            // A limit is never below what is asked for.
            "limits": {"cpu": "8", "memory": "1G"},
        })
    );
}

#[test]
fn a_request_over_a_cap_is_refused_with_the_name_of_the_cap() {
    let settings = "defaults: {cpus: {cap: 8}, memory: {cap: 64Gi}, ephemeral_storage: {cap: 1Gi}}";
    for (name, asked, expected) in [
        ("cpus", "9", "asks for 9 of `cpus`, and `cpus.cap`"),
        ("cpus", "1000000000", "`cpus.cap`"),
        ("memory", "9e18", "`memory.cap`"),
        ("memory", "65Gi", "asks for 65Gi of `memory`, and `memory.cap` of the network's settings"),
        ("ephemeral_storage", "2Gi", "`ephemeral_storage.cap`"),
    ] {
        let refusal = World::new(settings).asking(name, asked).refused();
        assert_eq!(refusal.exception, "PermissionError");
        assert!(refusal.message.contains(expected), "{}", refusal.message);
    }
    World::new(settings).asking("memory", "64Gi").job();
}

#[test]
fn an_invalid_quantity_is_refused_and_escaped() {
    for (name, asked) in [
        ("cpus", "1e9"),
        ("cpus", "0"),
        ("cpus", "-1"),
        ("cpus", "+1"),
        ("cpus", "0.5"),
        ("cpus", ""),
        ("cpus", "99999999999"),
        ("memory", "1e99Ki"),
        ("memory", "9Ei"),
        ("memory", "-1Gi"),
        ("memory", "0"),
        ("memory", "512MB"),
        ("ephemeral_storage", "\u{1b}[31m\n"),
    ] {
        let refusal = World::new("").asking(name, asked).refused();
        assert_eq!(refusal.exception, "ValueError", "{name} {asked}");
        assert!(refusal.message.contains(&format!("of `{name}`")), "{}", refusal.message);
        assert!(!refusal.message.contains(char::is_control));
    }
}

#[test]
fn denied_services_and_deep_questions_are_refused() {
    let settings =
        NetworkSettings::read("{deny: [\"octue/old-*\"], depth: 2}", ServiceFields::default())
            .unwrap();
    let [good, old] = ["octue/good:1", "octue/old-one:1"].map(|text| Sruid::parse(text).unwrap());
    assert_eq!(check_allowed(&settings, good, 2), Ok(()));
    let deep = check_allowed(&settings, good, 3).unwrap_err();
    assert_eq!(
        deep.message,
        "the question to `octue/good:1` is 3 questions below the first of its tree, and `depth` of \
         the network's settings allows 2: a service may be asking itself"
    );
    let denied = check_allowed(&settings, old, 0).unwrap_err();
    assert!(denied.message.contains("`deny` `octue/old-*`"), "{denied}");
    assert_eq!([deep.exception, denied.exception], ["PermissionError"; 2]);
}

#[test]
fn a_gated_job_is_suspended_and_names_its_gate() {
    let queued = World::new("defaults: {queue: main, queue_priority: high, running: 1}").job();
    let labels = queued.metadata.labels.unwrap();
    assert_eq!((&*labels[QUEUE_LABEL], &*labels[QUEUE_PRIORITY_LABEL]), ("main", "high"));
    assert!(!queued.metadata.annotations.unwrap().contains_key(annotation::GATE));
    assert_eq!(queued.spec.unwrap().suspend, Some(true));

    let limited = World::new("running: {tree: 1}").job();
    assert_eq!(limited.metadata.annotations.unwrap()[annotation::GATE], "limits");
    assert_eq!(limited.spec.unwrap().suspend, Some(true));
}

#[test]
fn no_setting_overrides_what_is_enforced() {
    let settings = "defaults:\n  \
        gpus: {number: 1}\n  \
        volumes: [{path: /a, secret: b}, {path: /c, claim: d}, {path: /e, empty_dir: 1Gi}]\n  \
        tolerations: [{}]\n  \
        security: ";
    for (security, non_root, capabilities) in [
        ("baseline", Value::Null, Value::Null),
        ("restricted", json!(true), json!({"drop": ["ALL"]})),
    ] {
        let value = value(&World::new(&format!("{settings}{security}\n")).job());
        let pod = value.pointer("/spec/template/spec").unwrap();
        for name in ["hostNetwork", "hostPID", "hostIPC", "securityContext"] {
            assert_eq!(pod[name], Value::Null, "{name}");
        }
        assert_eq!(pod["automountServiceAccountToken"], false);
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(context["privileged"], false);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(context["runAsNonRoot"], non_root);
        assert_eq!(context["capabilities"], capabilities);
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.iter().all(|volume| volume["hostPath"].is_null()));
    }
}

#[test]
fn an_unsafe_pod_is_corrected() {
    use k8s_openapi::api::core::v1::{HostPathVolumeSource, PodSpec, SecurityContext, Volume};
    let mut spec = World::new("").job().spec.unwrap().template.spec.unwrap();
    let right = spec.clone();
    spec.host_network = Some(true);
    spec.host_pid = Some(true);
    spec.host_ipc = Some(true);
    spec.automount_service_account_token = Some(true);
    spec.restart_policy = Some("Always".into());
    spec.containers[0].security_context =
        Some(SecurityContext { privileged: Some(true), ..SecurityContext::default() });
    pod::enforce(&mut spec, Default::default());
    assert_eq!(spec, right);

    let root = HostPathVolumeSource { path: "/".into(), type_: None };
    let volume = Volume { host_path: Some(root), ..Volume::default() };
    let mut spec = PodSpec { volumes: Some(vec![volume]), ..PodSpec::default() };
    pod::enforce(&mut spec, Default::default());
    assert_eq!(spec.volumes.unwrap()[0].host_path, None);
}

#[test]
fn the_settings_of_a_service_are_in_its_pod() {
    let world = World::new(
        "defaults:\n  \
         gpus: {number: 2}\n  \
         environment: {PUBSUB_EMULATOR_HOST: own}\n  \
         secrets: {TOKEN: {secret: tokens, key: wind}}\n  \
         volumes: [{path: /secrets/a, secret: a}, {path: /data, claim: d}]\n  \
         node_selector: {cloud.google.com/gke-spot: true}\n  \
         tolerations: [{key: gpu, value: x, effect: NoSchedule}, {key: y, effect: NoExecute, seconds: 5}]\n  \
         priority: high\n  \
         deadline: 1h\n  \
         image_pull_secrets: [registry]\n  \
         command: [python, -m, app]\n",
    );
    let value = value(&world.job());
    let pod = value.pointer("/spec/template/spec").unwrap();
    let container = &pod["containers"][0];
    assert_eq!(container["command"], json!(["python", "-m", "app"]));
    assert_eq!(container["env"][0], json!({"name": "PUBSUB_EMULATOR_HOST", "value": "own"}));
    assert_eq!(
        container["env"][1],
        json!({"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "wind"}}})
    );
    assert_eq!(container["resources"]["limits"], json!({"nvidia.com/gpu": "2"}));
    assert_eq!(container["resources"]["requests"]["nvidia.com/gpu"], "2");
    assert_eq!(
        container["volumeMounts"],
        json!([
            {"name": "volume-0", "mountPath": "/secrets/a", "readOnly": true},
            {"name": "volume-1", "mountPath": "/data", "readOnly": false},
        ])
    );
    assert_eq!(pod["volumes"][1]["persistentVolumeClaim"]["claimName"], "d");
    assert_eq!(pod["nodeSelector"], json!({"cloud.google.com/gke-spot": "true"}));
    assert_eq!(
        pod["tolerations"],
        json!([
            {"key": "gpu", "operator": "Equal", "value": "x", "effect": "NoSchedule"},
            {"key": "y", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
        ])
    );
    assert_eq!(pod["priorityClassName"], "high");
    assert_eq!(pod["activeDeadlineSeconds"], 3600);
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
}

#[test]
fn a_retry_of_the_sdk_and_an_attempt_of_ours_have_names_of_their_own() {
    let run = RunId { question: QUESTION.parse().unwrap(), retry: 2 };
    assert_eq!(name(run, 0), format!("question-{QUESTION}-r2"));
    assert_eq!(name(run, 3), format!("question-{QUESTION}-r2-a3"));
    let longest = RunId { retry: u32::MAX, ..run };
    assert_eq!(name(longest, u32::MAX).len(), 63);
}
