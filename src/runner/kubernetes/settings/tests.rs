use super::*;
use proptest::prelude::*;

fn read(text: &str) -> NetworkSettings {
    NetworkSettings::read(text, ServiceFields::default()).unwrap()
}

fn service(settings: &NetworkSettings, revision: &str) -> Arc<ServiceSettings> {
    settings.service(&revision.parse().unwrap())
}

fn error(text: &str) -> String {
    NetworkSettings::read(text, ServiceFields::default()).unwrap_err().to_string()
}

const WHOLE: &str = r#"
allow: ["octue/*", "*/open"]
deny: ["octue/old-*"]
running: {network: 500, tree: 50}
depth: 20
waiting: 12h
defaults:
  cpus: {default: 1, cap: 8}
  memory: {default: 512Mi, cap: 64Gi, limit: request}
  ephemeral_storage: {default: 1Gi, limit: 2Gi}
  environment: {MODE: production, LEVEL: 3, FLAG: true, RATIO: 1.50}
  node_selector: {cloud.google.com/gke-spot: true}
  deadline: 2d
  queue: main
rules:
  - services: ["octue/wind-*"]
    gpus: {resource: amd.com/gpu, number: 2}
    cpus: {cap: 16}
    environment: {MODE: test}
    secrets: {TOKEN: {secret: tokens, key: wind}}
    volumes:
      - {path: /secrets/wind, secret: wind-key}
      - {path: /config, config_map: wind}
      - {path: /data, claim: winds, read_only: true}
      - {path: /scratch, empty_dir: 10Gi}
    tolerations:
      - {key: gpu, value: "yes", effect: NoSchedule}
      - {key: away, effect: NoExecute, seconds: 60}
    service_account: wind
    priority: high
    queue: gpus
    queue_priority: urgent
    image_pull_secrets: [registry]
    retry:
      memory: {times: 2, backoff: 30s, factor: 1.5, ceiling: 32Gi}
      evicted: {times: 1}
    security: restricted
    running: 10
  - services: ["*/*:old-*"]
    command: [python, -m, old]
    inputs: file
    deadline: 1h30m
"#;

#[test]
fn the_defaults_are_those_of_the_reference() {
    let settings = read("");
    let service = service(&settings, "a/b:1");

    assert_eq!(service.cpus.default, Quantity::whole(1));
    assert_eq!(service.memory.default, "512Mi".parse().unwrap());
    assert_eq!(service.ephemeral_storage.default, "1Gi".parse().unwrap());
    for amount in [&service.cpus, &service.memory, &service.ephemeral_storage] {
        assert_eq!((amount.cap, amount.limit), (None, None));
    }
    assert_eq!(service.command, ["octue", "twined", "question", "ask-local"]);
    assert_eq!(service.deadline, Duration::from_secs(604_800));
    assert_eq!((service.security, service.inputs), (PodSecurity::Baseline, InputDelivery::Python));
    assert_eq!((service.running, service.queue.as_ref()), (None, None));
    assert!(service.relaunch.is_empty());
    assert_eq!((settings.depth, settings.waiting), (None, Duration::from_secs(86_400)));
    assert!(!settings.limits_running(&service));
}

#[test]
fn later_rules_override_field_by_field() {
    let settings = read(WHOLE);
    let wind = service(&settings, "octue/wind-speed:old-1");

    assert_eq!(wind.cpus.cap, Some(Quantity::whole(16)));
    assert_eq!(wind.cpus.default, Quantity::whole(1));
    assert_eq!(wind.memory.limit, Some(ResourceLimit::Request));
    let environment: Vec<_> =
        wind.environment.iter().map(|(name, value)| (&*name.0, &*value.0)).collect();
    // With their spelling.
    assert_eq!(
        environment,
        [("FLAG", "true"), ("LEVEL", "3"), ("MODE", "test"), ("RATIO", "1.50")]
    );
    assert_eq!(
        wind.gpus.as_ref().map(|gpus| (&*gpus.resource.0, gpus.number)),
        Some(("amd.com/gpu", 2))
    );
    assert_eq!(wind.queue.as_ref().map(|name| &*name.0), Some("gpus"));
    assert_eq!(wind.deadline, Duration::from_secs(5400));
    assert_eq!(wind.command, ["python", "-m", "old"]);
    assert_eq!(wind.inputs, InputDelivery::File);
    assert_eq!(wind.security, PodSecurity::Restricted);
    let retry = &wind.relaunch[&EndReason::Memory];
    assert_eq!((retry.times, retry.memory_permille), (2, 1500));
    assert_eq!(retry.backoff, Duration::from_secs(30));
    assert_eq!(retry.ceiling, "32Gi".parse().ok());
    assert_eq!(wind.relaunch[&EndReason::Evicted].backoff, Duration::from_secs(10));
    assert_eq!(wind.volumes.len(), 4);

    let other = service(&settings, "octue/other:1");
    assert_eq!(other.cpus.cap, Some(Quantity::whole(8)));
    assert_eq!(other.gpus, None);
    assert_eq!(other.environment.len(), 4);
    assert_eq!(other.deadline, Duration::from_secs(172_800));
    assert!(Arc::ptr_eq(&other, &service(&settings, "octue/other:1")));
}

#[test]
fn a_file_of_json_is_read_too() {
    let settings = read(r#"{"rules": [{"services": ["a/b"], "cpus": {"default": 2}}]}"#);
    assert_eq!(service(&settings, "a/b:1").cpus.default, Quantity::whole(2));
}

#[test]
fn a_variable_has_one_value_from_the_last_entry() {
    let settings = read(
        "defaults: {environment: {A: plain, B: plain}}\n\
         rules:\n\
         - {services: [\"a/*\"], secrets: {A: {secret: s, key: k}}}\n\
         - {services: [\"a/b\"], environment: {A: plain again}}\n",
    );
    let [c, b] = ["a/c:1", "a/b:1"].map(|revision| service(&settings, revision));
    assert_eq!((c.environment.len(), c.secrets.len()), (1, 1));
    assert_eq!((b.environment.len(), b.secrets.len()), (2, 0));
}

#[test]
fn the_file_overrides_flags() {
    let base = ServiceFields {
        service_account: Some(ObjectName::new("flag").unwrap()),
        queue: Some(ObjectName::new("flag").unwrap()),
        ..ServiceFields::default()
    };
    let settings = NetworkSettings::read("defaults: {queue: file}", base).unwrap();
    let service = service(&settings, "a/b:1");
    assert_eq!(service.service_account.as_ref().unwrap().0, "flag");
    assert_eq!(service.queue.as_ref().unwrap().0, "file");
    assert_eq!(settings.queues().len(), 2);
}

#[test]
fn a_cap_that_a_rule_lowers_lowers_the_default() {
    let settings = read("rules: [{services: [\"a/*\"], memory: {cap: 256Mi}}]");
    assert_eq!(service(&settings, "a/b:1").memory.default, "256Mi".parse().unwrap());
}

#[test]
fn deny_overrides_allow_and_the_setting_is_named() {
    let settings = read(WHOLE);
    let admit = |revision| settings.check_allowed(Sruid::parse(revision).unwrap());
    assert_eq!(admit("octue/wind:1"), Ok(()));
    assert_eq!(admit("other/open:1"), Ok(()));
    assert_eq!(
        admit("octue/old-wind:1").unwrap_err().to_string(),
        "`octue/old-wind:1` may not run in this network: its settings `deny` `octue/old-*`"
    );
    assert!(admit("other/shut:1").unwrap_err().to_string().contains("no pattern of `allow`"));
}

#[test]
fn an_error_names_its_place_and_what_is_expected() {
    for (text, expected) in [
        ("defaults:\n  memory: {default: 512MB}\n", "line 2"),
        ("defaults:\n  memory: {default: 512MB}\n", "`512MB`: not a quantity: a number such as"),
        ("defaults:\n  memory: {default: -1}\n", "cannot be negative"),
        ("defaults:\n  memory: {default: .nan}\n", "quantity"),
        ("\ndefaults:\n  memmory: {}\n", "line 3"),
        ("\ndefaults:\n  memmory: {}\n", "memmory"),
        ("nonsense: 1\n", "nonsense"),
        ("defaults: [1]\n", "line 1"),
        ("defaults: {deadline: 7}\n", "`7` is no time such as `90s`"),
        ("defaults: {deadline: 0s}\n", "`0s` is no time"),
        ("defaults: {deadline: 99999999d}\n", "is no time"),
        ("defaults: {queue: Main}\n", "`Main` is no name of an object of Kubernetes"),
        ("defaults: {environment: {1A: x}}\n", "`1A` is no name of a variable"),
        ("defaults: {environment: {COMPUTE_PROVIDER: x}}\n", "is set for every question"),
        ("defaults: {volumes: [{path: /a, host_path: /}]}\n", "host_path"),
        ("defaults: {volumes: [{path: /a}]}\n", "exactly one of `secret`"),
        ("defaults: {volumes: [{path: a, secret: b}]}\n", "`a` is no absolute path"),
        ("defaults: {volumes: [{path: /a/../b, secret: b}]}\n", "is no absolute path"),
        ("defaults: {volumes: [{path: /twined/x, secret: b}]}\n", "where questions are mounted"),
        ("defaults: {gpus: {resource: memory, number: 1}}\n", "is no extended resource"),
        ("defaults: {retry: {tired: {times: 1}}}\n", "`tired` is not a reason to relaunch a run"),
        (
            "defaults: {retry: {cancelled: {times: 1}}}\n",
            "`cancelled` is not a reason to relaunch a run",
        ),
        ("defaults: {retry: {memory: {times: 21}}}\n", "`times` is 21, over 20"),
        ("defaults: {retry: {memory: {times: 1, factor: 0.5}}}\n", "`factor` is 0.5"),
        ("defaults: {retry: {lost: {times: 1, factor: 2}}}\n", "the reason `memory` alone"),
        ("defaults: {command: []}\n", "`command` needs a program"),
        ("defaults: {running: 0}\n", "`0` is no whole number from 1"),
        ("defaults: {security: none}\n", "baseline"),
        ("defaults: {services: [\"a/b\"]}\n", "`defaults` of the settings apply to every service"),
        ("rules: [{queue: a}]\n", "rule 1 of the settings names no service"),
        ("rules: [{services: [\"a\"]}]\n", "pattern `a` has no `/`"),
        (
            "rules: [{services: [\"a/b\"], cpus: {default: 2, cap: 1}}]\n",
            "in rule 1 of the settings `cpus.default` is 2, over its `cap` of 1",
        ),
    ] {
        let error = error(text);
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn invented_names_do_not_grow_the_cache() {
    let settings = read("");
    for number in 0..2 * CACHE_CAPACITY {
        service(&settings, &format!("a/b:{number}"));
    }
    assert!(settings.cache.read().unwrap().len() <= CACHE_CAPACITY);
}

proptest! {
    #[test]
    fn no_file_causes_a_panic(text in "[a-z:{}\\[\\]\"&*!|>0-9 \n-]{0,60}") {
        let _ = NetworkSettings::read(&text, ServiceFields::default());
    }
}

// === The documents ===

fn documented() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md");
    std::fs::read_to_string(path).unwrap()
}

/// The keys that are allowed where `text` has one that is not.
fn allowed_keys(text: &str) -> Vec<String> {
    let error = error(text);
    let (_, expected) = error.split_once("expected one of ").unwrap_or_else(|| panic!("{error}"));
    let (keys, _) = expected.split_once(" at line").unwrap_or_else(|| panic!("{error}"));
    let keys: Vec<_> = keys.split(", ").map(str::to_owned).collect();
    assert!(keys.len() > 2, "{error}");
    keys
}

#[test]
fn the_example_of_the_documents_is_valid() {
    let text = documented();
    let (_, rest) = text.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let settings = read(example);
    assert_eq!(settings.running.network, Some(200));
    let service = service(&settings, "octue/wind-speed:1.0.0");
    assert_eq!(service.gpus.as_ref().unwrap().number, 1);
    assert!(
        settings.check_allowed("other/service:1".parse::<SruidBuf>().unwrap().as_sruid()).is_err()
    );
}

#[test]
fn every_key_is_documented() {
    let text = documented();
    let keys = [allowed_keys("nonsense: 1"), allowed_keys("defaults: {nonsense: 1}")].concat();
    assert!(keys.len() > 25, "{keys:?}");
    for key in keys {
        let named = text.contains(&format!("`{key}`")) || text.contains(&format!("`{key}."));
        assert!(named, "docs/settings.md does not name `{key}`");
    }
    for reason in EndReason::ALL {
        let can_retry = !matches!(reason, EndReason::Exited | EndReason::Cancelled);
        assert_eq!(text.contains(&format!("`{}`", reason.label())), can_retry, "{reason:?}");
    }
}
