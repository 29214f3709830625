use super::*;
use crate::runner::kubernetes::inputs::file_name;
use crate::sdk::arguments::QuestionFile;

/// The Job of a question, or why there is none.
fn job(settings: &str, inputs: Inputs<'_>) -> Result<Job, LaunchRefusal> {
    let recipient: SruidBuf = "a/b:1".parse().unwrap();
    let service =
        NetworkSettings::read(settings, ServiceFields::default()).unwrap().service(&recipient);
    let network = JobDefaults {
        namespace: "default".into(),
        images: "images".into(),
        topic: "topic".into(),
        environment: Vec::new(),
    };
    let attributes = HashMap::from([("recipient".to_owned(), recipient.to_string())]);
    let launch = LaunchRequest {
        run: RunId { question: QUESTION.parse().unwrap(), retry: 0 },
        recipient: &recipient,
        parent_question: None,
        attributes: &attributes,
        inputs,
    };
    manifest(&JobRequest {
        launch,
        service: &service,
        network: &network,
        gate: Gate::Open,
        depth: 0,
        launched: Timestamp(0),
        nonce: 0xbeef,
    })
}

/// The Job as the API server returns it.
fn created(settings: &str, inputs: Inputs<'_>) -> Job {
    let mut job = job(settings, inputs).unwrap();
    job.metadata.uid = Some("the-uid".into());
    job
}

fn pod(job: &Job) -> Value {
    serde_json::to_value(job).unwrap()["spec"]["template"]["spec"].take()
}

#[test]
fn values_that_the_sdk_loses_are_mounted_for_python_alone() {
    let is_mounted = |settings: &str, values| {
        let inputs = Inputs { input_values: Some(values), ..Inputs::default() };
        !input_secrets(&created(settings, inputs), inputs).is_empty()
    };
    for values in ["true", " false\n", "\"\""] {
        assert!(is_mounted("", values), "{values}");
        assert!(!is_mounted("defaults: {inputs: file}", values), "{values}");
    }
    for values in ["0", "null", "[]", "{}", "[false]", "\" \""] {
        assert!(!is_mounted("", values), "{values}");
    }
}

#[test]
fn only_a_question_that_no_argument_holds_is_mounted() {
    let fits = "1".repeat(ARGUMENT_LIMIT);
    let over = "1".repeat(ARGUMENT_LIMIT + 1);
    let mut inputs = Inputs { input_values: Some(&fits), ..Inputs::default() };
    inputs.input_manifest = Some(&fits);
    let arguments = job("", inputs).unwrap();
    assert!(input_secrets(&arguments, inputs).is_empty());
    assert_eq!(pod(&arguments)["volumes"], Value::Null);

    for inputs in [
        Inputs { input_values: Some(&over), ..Inputs::default() },
        Inputs { input_manifest: Some(&over), ..Inputs::default() },
        Inputs { children: Some("[]"), input_values: Some("1"), ..Inputs::default() },
    ] {
        let job = created("", inputs);
        let pod = pod(&job);
        let container = &pod["containers"][0];
        assert_eq!(
            container["command"],
            json!([
                "python3",
                "-S",
                "/twined/start.py",
                "octue",
                "twined",
                "question",
                "ask-local"
            ])
        );
        assert_eq!(container["args"].as_array().unwrap().len(), 2);
        assert_eq!(input_secrets(&job, inputs).len(), 1);
    }
}

#[test]
fn the_parts_join_to_the_question_and_the_pod_mounts_them_all() {
    let values = format!("\"{}\"", "é".repeat(1_000_000));
    let inputs = Inputs { input_values: Some(&values), ..Inputs::default() };
    let job = created("", inputs);
    let secrets = input_secrets(&job, inputs);

    assert_eq!(secrets.len(), 3);
    let mut joined = Vec::<u8>::new();
    for (part, secret) in secrets.iter().enumerate() {
        let data = secret.data.as_ref().unwrap();
        joined.extend(&data[&file_name(part)].0);
        assert!(data.values().map(|bytes| bytes.0.len()).sum::<usize>() < 1024 * 1024);
        let metadata = serde_json::to_value(&secret.metadata).unwrap();
        assert_eq!(metadata["name"], format!("question-{QUESTION}-0000beef-{part}"));
        assert_eq!(
            metadata["ownerReferences"],
            json!([{
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": format!("question-{QUESTION}"),
                "uid": "the-uid",
            }])
        );
        assert_eq!(secret.immutable, Some(true));
    }
    assert_eq!(joined, QuestionFile::new(inputs).bytes);

    let pod = pod(&job);
    let projected = &pod["volumes"][0]["projected"];
    assert_eq!(projected["defaultMode"], 0o444);
    for (source, secret) in projected["sources"].as_array().unwrap().iter().zip(&secrets) {
        assert_eq!(source["secret"]["name"], json!(secret.metadata.name));
        let items = source["secret"]["items"].as_array().unwrap();
        let mut keys: Vec<_> = items.iter().map(|item| item["key"].as_str().unwrap()).collect();
        keys.sort_unstable();
        assert_eq!(keys, secret.data.as_ref().unwrap().keys().collect::<Vec<_>>());
    }
    assert_eq!(
        pod["containers"][0]["volumeMounts"],
        json!([{"name": "twined", "mountPath": "/twined", "readOnly": true}])
    );
    let env = pod["containers"][0]["env"].as_array().unwrap();
    for (name, value) in
        [("TWINED_QUESTION_FILE", "/twined/question.json"), ("TWINED_QUESTION_PARTS", "3")]
    {
        assert!(env.contains(&json!({"name": name, "value": value})), "{name}");
    }
}

#[test]
fn with_file_delivery_the_command_stays() {
    let inputs = Inputs { children: Some("[]"), ..Inputs::default() };
    let pod = pod(&created("defaults: {inputs: file, command: [answer]}", inputs));
    assert_eq!(pod["containers"][0]["command"], json!(["answer"]));
    let items = &pod["volumes"][0]["projected"]["sources"][0]["secret"]["items"];
    assert_eq!(items, &json!([{"key": "question.json", "path": "question.json"}]));
}

#[test]
fn a_question_over_the_limit_is_refused() {
    let values = "1".repeat(10 * 1024 * 1024);
    let refusal = job("", Inputs { input_values: Some(&values), ..Inputs::default() }).unwrap_err();
    assert_eq!(refusal.exception, "ValueError");
    assert!(refusal.message.contains("bytes of JSON, and the limit is 10485760"), "{refusal}");
}

#[test]
fn a_job_with_a_malformed_annotation_has_no_secrets() {
    let inputs = Inputs { children: Some("[]"), ..Inputs::default() };
    for text in ["", "beef", "xyz 1", "beef -1", "beef 1 1"] {
        let mut job = created("", inputs);
        let annotations = job.metadata.annotations.as_mut().unwrap();
        annotations.insert(annotation::INPUTS.into(), text.into());
        assert!(input_secrets(&job, inputs).is_empty(), "{text}");
    }
}

#[test]
fn the_next_attempt_mounts_the_secrets_of_the_first() {
    let inputs = Inputs { children: Some("[]"), ..Inputs::default() };
    let first = created("", inputs);
    let policy =
        RelaunchPolicy { times: 1, backoff: Duration::ZERO, memory_permille: 1000, ceiling: None };
    let mut next = World::new("").next_attempt(&first, &policy).unwrap();
    next.metadata.uid = Some("another".into());

    assert_eq!(pod(&next)["volumes"], pod(&first)["volumes"]);
    let names = |job| -> Vec<_> {
        input_secrets(job, inputs).into_iter().map(|secret| secret.metadata.name).collect()
    };
    assert_eq!(names(&next), names(&first));
}
