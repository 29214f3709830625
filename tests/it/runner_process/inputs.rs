//! The arguments and the environment of a child.

use super::*;

/// Writes its arguments to `$NETWORK/arguments`, one a line, and its environment to
/// `$NETWORK/environment`.
const PRINTS: &str = "test/prints:1.2.3";
const PRINTS_SCRIPT: &str = r#"for argument; do printf '%s\n' "$argument"; done > $NETWORK/arguments
    env > $NETWORK/environment; pwd > $NETWORK/pwd"#;

fn network() -> TestNetwork {
    TestNetwork::new().service(PRINTS, PRINTS_SCRIPT)
}

fn variable(network: &TestNetwork, name: &str) -> Option<String> {
    let start = format!("{name}=");
    network
        .lines("environment")
        .iter()
        .find_map(|line| line.strip_prefix(&start).map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_passed_as_received_in_arguments_and_a_file() {
    let network = network();
    let runner = network.start().await;
    let inputs = Inputs {
        input_values: Some(r#"{"a": NaN,  "é": 1.0}"#),
        input_manifest: Some("null"),
        children: Some("[]"),
    };
    let attributes = [("sender".to_owned(), "local/local:local".to_owned())].into();
    let ask = Ask { inputs, attributes, ..Ask::new(PRINTS) };

    assert_eq!(ask.end(&runner).await.cause.reason, EndReason::Exited);

    assert_eq!(
        network.lines("arguments"),
        [
            "--attributes",
            r#"{"forward_logs":"0","retry_count":"0","sender":"local/local:local"}"#,
            "--input-values",
            r#"{"a": NaN,  "é": 1.0}"#,
            "--input-manifest",
            "null",
        ]
    );
    let file = variable(&network, "TWINED_QUESTION_FILE").unwrap();
    assert_eq!(
        fs::read_to_string(file).unwrap(),
        r#"{"input_values":{"a": NaN,  "é": 1.0},"input_manifest":null,"children":[]}"#
    );
    assert_eq!(network.lines("pwd"), [network.service_folder(PRINTS).to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn falsy_inputs_are_passed_and_absent_ones_are_not() {
    let network = network();
    let runner = network.start().await;
    for values in ["0", "false", "\"\"", "[]", "{}", "null"] {
        let inputs = Inputs { input_values: Some(values), ..Inputs::default() };
        Ask { inputs, ..Ask::new(PRINTS) }.end(&runner).await;
        assert_eq!(network.lines("arguments")[2..], ["--input-values", values]);
    }
    Ask::new(PRINTS).end(&runner).await;
    assert_eq!(network.lines("arguments").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_too_long_for_an_argument_is_passed_in_the_file() {
    let script = "cp $TWINED_QUESTION_FILE $NETWORK/question; echo $# > $NETWORK/count";
    let network = TestNetwork::new().service("test/large:1.0", script);
    let runner = network.start().await;
    let values: &str = Box::leak(format!("[{}1]", "1,".repeat(4_000_000)).into_boxed_str());
    let inputs = Inputs { input_values: Some(values), input_manifest: Some("{}"), children: None };

    let end = Ask { inputs, ..Ask::new("test/large:1.0") }.end(&runner).await;

    assert_eq!(end.cause.reason, EndReason::Exited, "{end:?}");
    // The attributes and the manifest.
    assert_eq!(network.lines("count"), ["4"]);
    let question = fs::read_to_string(network.file("question")).unwrap();
    assert_eq!(question, format!(r#"{{"input_values":{values},"input_manifest":{{}}}}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_childs_environment_has_the_given_variables_only() {
    let mut network = network();
    network.options.inherited.push(("TWINED_SECRET".into(), "ours".into()));
    network.options.inherited.push(("TZ".into(), "UTC".into()));
    network.options.environment.push(("TWINED_SERVICES_TOPIC_NAME".into(), "here".into()));
    network.options.passed = vec![("TOKEN".into(), "passed".into())];
    network.options.shim = Some("/shim".into());
    let dotenv = "# of the service\nTOKEN=dotenv\nNAME='a name'\nTWINED_SERVICES_TOPIC_NAME=there\n\
                  PYTHONPATH=src\nTZ=CET\n";
    fs::write(network.service_folder(PRINTS).join(".env"), dotenv).unwrap();
    let runner = network.start().await;

    Ask::new(PRINTS).end(&runner).await;

    for (name, value) in [
        ("TWINED_SECRET", None),
        ("CARGO_PKG_NAME", None),
        ("TOKEN", Some("passed")),
        ("NAME", Some("a name")),
        ("TWINED_SERVICES_TOPIC_NAME", Some("here")),
        ("OCTUE_SERVICE_REVISION_TAG", Some("1.2.3")),
        ("PYTHONUNBUFFERED", Some("1")),
        ("PYTHONPATH", Some("/shim:src")),
        ("TZ", Some("CET")),
    ] {
        assert_eq!(variable(&network, name).as_deref(), value, "{name}");
    }
    assert!(variable(&network, "PATH").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_service_takes_effect_with_its_next_question() {
    let network = TestNetwork::new().program("test/changes:1.0", &["sh", "answer.sh"]);
    let runner = network.start().await;
    let script = network.service_folder("test/changes:1.0").join("answer.sh");
    for text in ["one", "two"] {
        fs::write(&script, format!("echo {text}")).unwrap();
        let end = Ask::new("test/changes:1.0").end(&runner).await;
        assert_eq!(end.tail, [format!("{text}\n")]);
    }
}
