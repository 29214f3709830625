//! An existing Job: it is read, adopted, and followed by another attempt.

use super::*;

#[test]
fn a_job_identifies_its_question() {
    let mut world = World::new("");
    world.retry = 2;
    let identity = identify(&world.job()).unwrap();
    assert_eq!(
        identity,
        JobIdentity {
            run: RunId { question: QUESTION.parse().unwrap(), retry: 2 },
            attempt: 0,
            recipient: world.recipient.clone(),
            parent_question: Some(PARENT.parse().unwrap()),
            originator_question: PARENT.parse().unwrap(),
            depth: 1,
            launched: Timestamp(1_712_832_408_236_064),
            attributes: Arc::new(world.attributes),
        }
    );
}

#[test]
fn a_malformed_job_has_no_identity() {
    let job = World::new("").job();
    assert_eq!(identify(&Job::default()), None);
    for name in [label::MANAGED_BY, label::QUESTION, label::RETRY, label::ATTEMPT] {
        for text in ["", "odd", "-1", "\u{0}"] {
            let mut odd = job.clone();
            odd.metadata.labels.as_mut().unwrap().insert(name.into(), text.into());
            assert_eq!(identify(&odd), None, "{name} {text}");
        }
    }
    for name in [annotation::ATTRIBUTES, annotation::LAUNCHED] {
        for text in ["", "odd", "{", "[1]", "{\"a\": 1}", "{}"] {
            let mut odd = job.clone();
            odd.metadata.annotations.as_mut().unwrap().insert(name.into(), text.into());
            assert_eq!(identify(&odd), None, "{name} {text}");
        }
    }
}

/// The Job that the reference creates for a question.
fn reference(world: &World, arguments: Value) -> Job {
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("question-{QUESTION}"),
            "resourceVersion": "7",
            "labels": {"kueue.x-k8s.io/queue-name": "q"}
        },
        "spec": {"template": {"spec": {"containers": [{
            "name": "c",
            "image": image(&world.network, world.recipient.as_sruid()),
            "args": arguments,
        }]}}},
    }))
    .unwrap()
}

#[test]
fn the_job_of_the_reference_for_the_same_question_is_recognized() {
    let mut world = World::new("");
    world.inputs.input_values = Some(r#"{"a": [1, 2.0]}"#);
    let attributes = serde_json::to_string_pretty(&world.attributes).unwrap();
    let is = |world: &World, job: &Job| world.with(|order| is_reference(job, order));
    let other = attributes.replace("0.69.1", "0.69.2");

    for (arguments, same) in [
        (json!(["--attributes", attributes, "--input-values", r#"{"a":[1,2.0]}"#]), true),
        (json!(["--input-values", r#"{"a":[1,2.0]}"#, "--attributes", attributes]), true),
        (json!(["--attributes", attributes, "--input-values", r#"{"a":[1,3]}"#]), false),
        (json!(["--attributes", attributes]), false),
        (json!(["--attributes", other, "--input-values", r#"{"a":[1,2.0]}"#]), false),
        (json!(["--input-values", r#"{"a":[1,2.0]}"#]), false),
        (json!(["--attributes", attributes, "--input-values"]), false),
        (json!(["--attributes", attributes, "--more", "1"]), false),
    ] {
        assert_eq!(is(&world, &reference(&world, arguments.clone())), same, "{arguments}");
    }

    // The reference drops values that are false in Python.
    world.inputs.input_values = Some("[]");
    let job = reference(&world, json!(["--attributes", attributes]));
    assert!(is(&world, &job));
    let mut elsewhere = World::new("");
    elsewhere.network.images = "elsewhere".into();
    assert!(!is(&elsewhere, &job));
    assert!(!is(&world, &world.job()));
    world.inputs.children = Some("[]");
    assert!(!is(&world, &job));
}

#[test]
fn an_adopted_job_is_one_of_ours() {
    let world = World::new("running: {network: 1}");
    let mut job = reference(&world, json!([]));
    let patch = world.with(|order| adoption(&job, order)).unwrap();

    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    assert_eq!(patch["spec"], json!({"ttlSecondsAfterFinished": 86_400, "backoffLimit": 0}));
    assert_eq!(patch["metadata"]["annotations"].get(annotation::GATE), None);
    job.metadata.labels = serde_json::from_value(patch["metadata"]["labels"].clone()).unwrap();
    job.metadata.annotations =
        serde_json::from_value(patch["metadata"]["annotations"].clone()).unwrap();
    assert_eq!(identify(&job), identify(&world.job()));
}

fn retry(permille: u32, ceiling: Option<&str>) -> RelaunchPolicy {
    let ceiling = ceiling.map(|text| text.parse().unwrap());
    RelaunchPolicy { times: 3, backoff: Duration::ZERO, memory_permille: permille, ceiling }
}

/// Adds what the API server, its controllers, Kueue, we and others write into an existing Job.
fn add_everything(job: &mut Job) {
    let metadata = &mut job.metadata;
    metadata.uid = Some("uid".into());
    metadata.resource_version = Some("9".into());
    metadata.finalizers = Some(vec!["orphan".into()]);
    let labels = metadata.labels.get_or_insert_default();
    labels.insert(label::SETTLED.into(), "true".into());
    labels.insert("team".into(), "x".into());
    let annotations = metadata.annotations.get_or_insert_default();
    for name in [annotation::STOPPED, annotation::REPORT, annotation::EVICTED, annotation::GATE] {
        annotations.insert(name.into(), "x".into());
    }
    annotations.insert("kueue.x-k8s.io/info".into(), "x".into());
    let spec = job.spec.as_mut().unwrap();
    spec.active_deadline_seconds = Some(1);
    spec.selector = Some(Default::default());
    spec.suspend = Some(true);
    spec.completion_mode = Some("NonIndexed".into());
    let template = spec.template.metadata.get_or_insert_default();
    let labels = template.labels.get_or_insert_default();
    for name in ["batch.kubernetes.io/controller-uid", "job-name", "kueue.x-k8s.io/podset"] {
        labels.insert(name.into(), "x".into());
    }
    let annotations = template.annotations.get_or_insert_default();
    annotations.insert("kueue.x-k8s.io/workload".into(), "job-question-x".into());
    let pod = spec.template.spec.as_mut().unwrap();
    pod.node_selector.get_or_insert_default().insert("flavor".into(), "spot".into());
    pod.tolerations.get_or_insert_default().push(Default::default());
    pod.scheduling_gates = Some(vec![Default::default()]);
    pod.host_network = Some(true);
    pod.scheduler_name = Some("default-scheduler".into());
    pod.containers[0].image_pull_policy = Some("Always".into());
    pod.containers.push(Default::default());
}

#[test]
fn the_next_attempt_has_nothing_that_others_wrote_into_the_last_job() {
    for settings in [
        "defaults: {node_selector: {disk: fast}}",
        "defaults: {queue: small, queue_priority: high}",
        "running: {network: 1}",
        "",
    ] {
        let mut world = World::new(settings);
        world.inputs.input_values = Some(r#"{"cost": "$$1 $(HOME)"}"#);
        world.inputs.input_manifest = Some(r#"{"id": "$"}"#);
        let first = world.job();
        let mut seen = first.clone();
        add_everything(&mut seen);

        let next = world.next_attempt(&seen, &retry(1000, None));

        let mut expected = first;
        expected.metadata.name = Some(format!("question-{QUESTION}-a1"));
        let launched = "1970-01-01T00:00:00.000000+00:00";
        let annotations = expected.metadata.annotations.as_mut().unwrap();
        annotations.insert(annotation::LAUNCHED.into(), launched.into());
        let spec = expected.spec.as_mut().unwrap();
        let template = spec.template.metadata.as_mut().unwrap().labels.as_mut().unwrap();
        for labels in [expected.metadata.labels.as_mut().unwrap(), template] {
            labels.insert(label::ATTEMPT.into(), "1".into());
        }
        assert_eq!(next, Some(expected), "{settings}");
    }
}

#[test]
fn a_question_that_asks_for_more_than_the_settings_allow_by_now_has_no_next_attempt() {
    let job = World::new("").asking("memory", "8Gi").job();
    let stricter = World::new("defaults: {memory: {cap: 4Gi}}");
    assert_eq!(stricter.next_attempt(&job, &retry(1000, None)), None);
}

#[test]
fn memory_is_raised_up_to_its_ceiling_and_never_lowered() {
    let world = World::new("defaults: {memory: {limit: 2Gi}}").asking("memory", "1Gi");
    for (permille, ceiling, request, limit) in [
        (1000, None, "1Gi", "2Gi"),
        (2000, None, "2Gi", "4Gi"),
        (2000, Some("3Gi"), "2Gi", "3Gi"),
        (2000, Some("512Mi"), "1Gi", "2Gi"),
        (1500, Some("1536Mi"), "1536Mi", "2Gi"),
    ] {
        let next = world.next_attempt(&world.job(), &retry(permille, ceiling)).unwrap();
        let resources = &value(&next)["spec"]["template"]["spec"]["containers"][0]["resources"];
        assert_eq!(resources["requests"]["memory"], request);
        assert_eq!(resources["limits"]["memory"], limit);
        assert_eq!(resources["requests"]["cpu"], "1");
    }
}

#[test]
fn memory_is_raised_from_that_of_the_last_attempt() {
    let world = World::new("").asking("memory", "1Gi");
    let second = world.next_attempt(&world.job(), &retry(2000, None)).unwrap();
    let third = world.next_attempt(&second, &retry(2000, None)).unwrap();
    let resources = &value(&third)["spec"]["template"]["spec"]["containers"][0]["resources"];
    assert_eq!(resources["requests"]["memory"], "4Gi");
}

#[test]
fn memory_that_cannot_be_read_is_taken_from_the_question() {
    let world = World::new("").asking("memory", "1Gi");
    let mut job = world.job();
    let container = &mut job.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0];
    let requests = container.resources.as_mut().unwrap().requests.as_mut().unwrap();
    requests.get_mut("memory").unwrap().0 = "odd".into();
    let next = world.next_attempt(&job, &retry(2000, None)).unwrap();
    let resources = &value(&next)["spec"]["template"]["spec"]["containers"][0]["resources"];
    assert_eq!(resources["requests"]["memory"], "2Gi");
}
