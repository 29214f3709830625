use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
}

const IMAGES: &str = "--images=europe-docker.pkg.dev/p/r";

fn settings(args: &[&str], environment: &[(&str, &str)]) -> Result<ServeSettings, ConfigError> {
    let args = Cli::try_parse_from(["twined"].iter().chain(args)).unwrap().serve;
    let environment: BTreeMap<_, _> = environment.iter().copied().collect();
    args.into_settings(|name| environment.get(name).map(|value| (*value).to_owned()))
}

fn refusal(args: &[&str], environment: &[(&str, &str)]) -> String {
    settings(args, environment).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_those_of_today_s_networks() {
    let settings =
        settings(&[IMAGES], &[("GOOGLE_CLOUD_PROJECT", "p"), ("HOSTNAME", "h")]).unwrap();

    assert_eq!((&*settings.topic, &*settings.project), (DEFAULT_TOPIC, "p"));
    assert_eq!(settings.subscription, format!("twined.daemon.{DEFAULT_TOPIC}"));
    assert_eq!(settings.pubsub, PubsubChoice::Google);
    assert!(settings.store.is_absolute() && settings.store.ends_with(".twined/events.sqlite"));
    assert!(settings.replica.starts_with("h-"), "{}", settings.replica);
    assert!(settings.view_subscription().ends_with(&settings.replica));
    let RunnerSettings::Kubernetes(kubernetes) = settings.runner else {
        panic!("{:?}", settings.runner)
    };
    assert_eq!(kubernetes.namespace, "default");
    assert_eq!(kubernetes.images, "europe-docker.pkg.dev/p/r");
    assert_eq!(kubernetes.defaults.memory.to_string(), "512Mi");
    assert_eq!(kubernetes.lease_name, "twined-main.octue.twined.services");
    assert_eq!(kubernetes.queue, None);
}

#[test]
fn each_error_names_the_flag_that_corrects_it() {
    let google = [("GOOGLE_CLOUD_PROJECT", "p")];
    // With the prefix `twined.daemon.` it is too long for a subscription.
    let long = format!("--topic={}", "t".repeat(255));
    let long_replica = format!("--replica={}", "r".repeat(255));
    for (args, environment, word) in [
        (&[][..], &google[..], "--images"),
        (&[IMAGES], &[], "--project"),
        (&["--images=https://x/y"], &google, "https://"),
        (&[IMAGES, "--store=bigquery:a.b"], &google, "sqlite:PATH"),
        (&[IMAGES, "--store=sqlite:"], &google, "sqlite:PATH"),
        (&[IMAGES, "--topic=projects/p/topics/t"], &google, "--topic"),
        (&[IMAGES, "--topic=goog.topic"], &google, "--topic"),
        (&[IMAGES, "--subscription=projects/p/subscriptions/s"], &google, "--subscription"),
        (&[IMAGES, "--subscription=ab"], &google, "--subscription"),
        (&[IMAGES, &long], &google, "--subscription"),
        (&[IMAGES, "--replica=a/b"], &google, "--replica"),
        (&[IMAGES, &long_replica], &google, "--replica"),
        (&[IMAGES, "--namespace=Upper"], &google, "--namespace"),
        (&[IMAGES, "--lease-name=-x"], &google, "--lease-name"),
        (&[IMAGES, "--default-memory=many"], &google, "--default-memory many"),
        (&[IMAGES, "--queue=a b"], &google, "--queue"),
        (&[IMAGES, "--emulate=127.0.0.1:0", "--pubsub=a:1"], &google, "--emulate"),
        (&[IMAGES, "folder"], &google, "--runner process"),
        (&["--runner=process", "--settings=s.yaml"], &google, "--runner kubernetes"),
        (&[IMAGES, "--env==x"], &google, "--env"),
    ] {
        let message = refusal(args, environment);
        assert!(message.contains(word), "{args:?}: {message}");
    }
}

#[test]
fn the_default_replica_is_the_host_s_name_without_what_no_subscription_can_have() {
    let environment = [("GOOGLE_CLOUD_PROJECT", "p"), ("HOSTNAME", "a host/of mine")];
    let settings = settings(&[IMAGES], &environment).unwrap();
    assert!(settings.replica.starts_with("ahostofmine-"), "{}", settings.replica);
}

#[test]
fn an_emulator_needs_no_project_and_the_process_runner_no_images() {
    let host = [("PUBSUB_EMULATOR_HOST", "a:1")];
    let process = settings(&["--runner=process"], &host).unwrap();
    assert_eq!(process.pubsub, PubsubChoice::Emulator("a:1".to_owned()));
    assert_eq!(process.project, DEFAULT_PROJECT);
    assert!(matches!(process.runner, RunnerSettings::Process(_)));

    let flag = settings(&[IMAGES, "--pubsub=b:2"], &host).unwrap();
    assert_eq!(flag.pubsub, PubsubChoice::Emulator("b:2".to_owned()));
    let own = settings(&[IMAGES, "--emulate=127.0.0.1:0"], &host).unwrap();
    assert!(matches!(own.pubsub, PubsubChoice::OwnEmulator(_)));
}

#[test]
fn an_empty_setting_is_not_set() {
    let empty = [("PUBSUB_EMULATOR_HOST", ""), ("GOOGLE_CLOUD_PROJECT", "p")];
    let settings = settings(&[IMAGES, "--queue=", "--store=", "--replica="], &empty).unwrap();
    assert_eq!(settings.pubsub, PubsubChoice::Google);
    let RunnerSettings::Kubernetes(kubernetes) = settings.runner else {
        panic!("{:?}", settings.runner)
    };
    assert_eq!(kubernetes.queue, None);
}

#[test]
fn a_variable_that_this_version_does_not_use_gives_a_warning() {
    let environment = [("GOOGLE_CLOUD_PROJECT", "p"), ("BIGQUERY_EVENTS_TABLE", "a.b.c")];
    let unused = settings(&[IMAGES], &environment).unwrap().unused;
    assert_eq!(unused.len(), 1);
    assert!(unused[0].starts_with("BIGQUERY_EVENTS_TABLE is not used by this version"));
}

#[test]
fn a_setting_of_the_other_runner_gives_a_warning() {
    let unused = |args: &[&str]| settings(args, &[("GOOGLE_CLOUD_PROJECT", "p")]).unwrap().unused;
    let pods = unused(&[IMAGES, "--tag=t", "--max-runs=1", "--queue=q"]);
    assert_eq!(pods.len(), 2, "{pods:?}");
    assert!(pods[0].starts_with("`--tag` is not used with `--runner kubernetes`"), "{pods:?}");
    let processes = unused(&["--runner=process", IMAGES, "--queue=q", "--tag=t"]);
    assert_eq!(processes.len(), 2, "{processes:?}");
    assert!(processes[1].starts_with("`--queue` is not used with `--runner process`"));
}

#[test]
fn each_topic_has_a_lease_of_its_own() {
    assert_eq!(lease_of_topic("a.b"), "twined-a.b");
    let (upper, lower) = (lease_of_topic("Main"), lease_of_topic("main"));
    assert_ne!(upper, lower);
    for topic in ["Main", "a_b", &"x".repeat(200), "ends.", "%+~"] {
        check_name("--lease-name", &lease_of_topic(topic)).unwrap();
    }
}
