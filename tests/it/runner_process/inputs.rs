//! What a child is given.

use super::*;

/// Writes its arguments to `$WORLD/arguments`, one a line, and its environment to
/// `$WORLD/environment`.
const TELLS: &str = "test/tells:1.2.3";
const TELLS_SCRIPT: &str = r#"for argument; do printf '%s\n' "$argument"; done > $WORLD/arguments
    env > $WORLD/environment; pwd > $WORLD/pwd"#;

fn world() -> World {
    World::new().service(TELLS, TELLS_SCRIPT)
}

fn variable(world: &World, name: &str) -> Option<String> {
    let start = format!("{name}=");
    world.lines("environment").iter().find_map(|line| line.strip_prefix(&start).map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_comes_as_arguments_and_as_a_file_as_it_came() {
    let world = world();
    let runner = world.start().await;
    let inputs = Inputs {
        input_values: Some(r#"{"a": NaN,  "é": 1.0}"#),
        input_manifest: Some("null"),
        children: Some("[]"),
    };
    let attributes = [("sender".to_owned(), "local/local:local".to_owned())].into();
    let ask = Ask { inputs, attributes, ..Ask::new(TELLS) };

    assert_eq!(ask.end(&runner).await.reason, EndReason::Exited);

    assert_eq!(
        world.lines("arguments"),
        [
            "--attributes",
            r#"{"forward_logs":"0","retry_count":"0","sender":"local/local:local"}"#,
            "--input-values",
            r#"{"a": NaN,  "é": 1.0}"#,
            "--input-manifest",
            "null",
        ]
    );
    let file = variable(&world, "TWINED_QUESTION_FILE").unwrap();
    assert_eq!(
        fs::read_to_string(file).unwrap(),
        r#"{"input_values":{"a": NaN,  "é": 1.0},"input_manifest":null,"children":[]}"#
    );
    assert_eq!(world.lines("pwd"), [world.service_folder(TELLS).to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn falsy_values_are_given_and_absent_ones_are_not() {
    let world = world();
    let runner = world.start().await;
    for values in ["0", "false", "\"\"", "[]", "{}", "null"] {
        let inputs = Inputs { input_values: Some(values), ..Inputs::default() };
        Ask { inputs, ..Ask::new(TELLS) }.end(&runner).await;
        assert_eq!(world.lines("arguments")[2..], ["--input-values", values]);
    }
    Ask::new(TELLS).end(&runner).await;
    assert_eq!(world.lines("arguments").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_argument_holds_comes_by_file() {
    let script = "cp $TWINED_QUESTION_FILE $WORLD/question; echo $# > $WORLD/count";
    let world = World::new().service("test/large:1.0", script);
    let runner = world.start().await;
    let values: &str = Box::leak(format!("[{}1]", "1,".repeat(4_000_000)).into_boxed_str());
    let inputs = Inputs { input_values: Some(values), input_manifest: Some("{}"), children: None };

    let end = Ask { inputs, ..Ask::new("test/large:1.0") }.end(&runner).await;

    assert_eq!(end.reason, EndReason::Exited, "{end:?}");
    // The attributes and the manifest.
    assert_eq!(world.lines("count"), ["4"]);
    let question = fs::read_to_string(world.file("question")).unwrap();
    assert_eq!(question, format!(r#"{{"input_values":{values},"input_manifest":{{}}}}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_childs_environment_is_clean_and_has_what_it_needs() {
    let mut world = world();
    world.options.inherited.push(("TWINED_SECRET".into(), "ours".into()));
    world.options.inherited.push(("TZ".into(), "UTC".into()));
    world.options.environment.push(("TWINED_SERVICES_TOPIC_NAME".into(), "here".into()));
    world.options.passed = vec![("TOKEN".into(), "passed".into())];
    world.options.shim = Some("/shim".into());
    let dotenv = "# of the service\nTOKEN=dotenv\nNAME='a name'\nTWINED_SERVICES_TOPIC_NAME=there\n\
                  PYTHONPATH=src\nTZ=CET\n";
    fs::write(world.service_folder(TELLS).join(".env"), dotenv).unwrap();
    let runner = world.start().await;

    Ask::new(TELLS).end(&runner).await;

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
        assert_eq!(variable(&world, name).as_deref(), value, "{name}");
    }
    assert!(variable(&world, "PATH").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_service_is_what_its_next_question_runs() {
    let world = World::new().program("test/changes:1.0", &["sh", "answer.sh"]);
    let runner = world.start().await;
    let script = world.service_folder("test/changes:1.0").join("answer.sh");
    for text in ["one", "two"] {
        fs::write(&script, format!("echo {text}")).unwrap();
        let end = Ask::new("test/changes:1.0").end(&runner).await;
        assert_eq!(end.tail, [format!("{text}\n")]);
    }
}
