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

#[test]
fn the_next_attempt_drops_the_additions_of_the_cluster() {
    let world = World::new("defaults: {node_selector: {disk: fast}}");
    let first = world.job();
    let mut seen = first.clone();
    // The additions of the API server, of its controllers and of ours.
    let metadata = &mut seen.metadata;
    metadata.uid = Some("uid".into());
    metadata.resource_version = Some("9".into());
    metadata.labels.as_mut().unwrap().insert(label::SETTLED.into(), "true".into());
    for name in [annotation::STOPPED, annotation::REPORT, annotation::EVICTED] {
        metadata.annotations.as_mut().unwrap().insert(name.into(), "x".into());
    }
    let spec = seen.spec.as_mut().unwrap();
    spec.active_deadline_seconds = Some(1);
    spec.selector = Some(Default::default());
    spec.suspend = Some(true);
    let template = spec.template.metadata.as_mut().unwrap().labels.as_mut().unwrap();
    template.insert("batch.kubernetes.io/controller-uid".into(), "uid".into());
    template.insert("job-name".into(), "question".into());
    let pod = spec.template.spec.as_mut().unwrap();
    pod.node_selector.as_mut().unwrap().insert("flavor".into(), "spot".into());
    pod.host_network = Some(true);

    let next =
        next_attempt(&seen, 1, &world.service(), &retry(1000, None), Gate::Open, Timestamp(0));

    let mut expected = first;
    expected.metadata.name = Some(format!("question-{QUESTION}-a1"));
    let launched = "1970-01-01T00:00:00.000000+00:00";
    expected
        .metadata
        .annotations
        .as_mut()
        .unwrap()
        .insert(annotation::LAUNCHED.into(), launched.into());
    let spec = expected.spec.as_mut().unwrap();
    let template = spec.template.metadata.as_mut().unwrap().labels.as_mut().unwrap();
    for labels in [expected.metadata.labels.as_mut().unwrap(), template] {
        labels.insert(label::ATTEMPT.into(), "1".into());
    }
    assert_eq!(next, Some(expected));
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
        let retry = retry(permille, ceiling);
        let next =
            next_attempt(&world.job(), 1, &world.service(), &retry, Gate::Open, Timestamp(0));
        let resources =
            &value(&next.unwrap())["spec"]["template"]["spec"]["containers"][0]["resources"];
        assert_eq!(resources["requests"]["memory"], request);
        assert_eq!(resources["limits"]["memory"], limit);
        assert_eq!(resources["requests"]["cpu"], "1");
    }
}

#[test]
fn an_unreadable_quantity_stays_as_it_is() {
    let world = World::new("");
    let mut job = world.job();
    let container = &mut job.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0];
    let requests = container.resources.as_mut().unwrap().requests.as_mut().unwrap();
    requests.get_mut("memory").unwrap().0 = "odd".into();
    let next =
        next_attempt(&job, 1, &world.service(), &retry(2000, None), Gate::Open, Timestamp(0));
    let next = value(&next.unwrap());
    assert_eq!(
        next["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"],
        "odd"
    );
    assert_eq!(Quantity::mebi(1).to_string(), "1Mi");
}
