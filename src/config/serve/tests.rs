use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
}

const IMAGES: &str = "--images=europe-docker.pkg.dev/p/r";

fn settings(args: &[&str], ours: &[(&str, &str)]) -> Result<ServeSettings, ConfigError> {
    let args = Cli::try_parse_from(["twined"].iter().chain(args)).unwrap().serve;
    let ours: BTreeMap<_, _> = ours.iter().copied().collect();
    args.checked(|name| ours.get(name).map(|value| (*value).to_owned()))
}

fn refusal(args: &[&str], ours: &[(&str, &str)]) -> String {
    settings(args, ours).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_those_of_networks_today() {
    let settings =
        settings(&[IMAGES], &[("GOOGLE_CLOUD_PROJECT", "p"), ("HOSTNAME", "h")]).unwrap();

    assert_eq!((&*settings.topic, &*settings.project), (DEFAULT_TOPIC, "p"));
    assert_eq!(settings.subscription, format!("twined.daemon.{DEFAULT_TOPIC}"));
    assert_eq!(settings.bus, Bus::Google);
    assert!(settings.store.is_absolute() && settings.store.ends_with(".twined/events.sqlite"));
    assert!(settings.replica.starts_with("h-"), "{}", settings.replica);
    assert!(settings.view_subscription().ends_with(&settings.replica));
    let Runs::Kubernetes(kubernetes) = settings.runner else { panic!("{:?}", settings.runner) };
    assert_eq!(kubernetes.namespace, "default");
    assert_eq!(kubernetes.images, "europe-docker.pkg.dev/p/r");
    assert_eq!(kubernetes.defaults.memory.to_string(), "512Mi");
    assert_eq!(kubernetes.lease, "twined-main.octue.twined.services");
    assert_eq!(kubernetes.queue, None);
}

#[test]
fn what_is_missing_or_wrong_is_named_with_the_flag_that_mends_it() {
    let google = [("GOOGLE_CLOUD_PROJECT", "p")];
    // With `twined.daemon.` before it, it is too long for a subscription.
    let long = format!("--topic={}", "t".repeat(255));
    let long_replica = format!("--replica={}", "r".repeat(255));
    for (args, ours, word) in [
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
        (&[IMAGES, "--name=-x"], &google, "--name"),
        (&[IMAGES, "--default-memory=many"], &google, "--default-memory many"),
        (&[IMAGES, "--queue=a b"], &google, "--queue"),
        (&[IMAGES, "--emulate=127.0.0.1:0", "--pubsub=a:1"], &google, "--emulate"),
        (&[IMAGES, "folder"], &google, "--runner process"),
        (&["--runner=process", "--settings=s.yaml"], &google, "--runner kubernetes"),
        (&[IMAGES, "--env==x"], &google, "--env"),
    ] {
        let words = refusal(args, ours);
        assert!(words.contains(word), "{args:?}: {words}");
    }
}

#[test]
fn a_host_s_name_gives_what_fits_into_a_subscription() {
    let ours = [("GOOGLE_CLOUD_PROJECT", "p"), ("HOSTNAME", "a host/of mine")];
    let settings = settings(&[IMAGES], &ours).unwrap();
    assert!(settings.replica.starts_with("ahostofmine-"), "{}", settings.replica);
}

#[test]
fn an_emulator_needs_no_project_and_processes_no_images() {
    let host = [("PUBSUB_EMULATOR_HOST", "a:1")];
    let process = settings(&["--runner=process"], &host).unwrap();
    assert_eq!(process.bus, Bus::Emulator("a:1".to_owned()));
    assert_eq!(process.project, DEFAULT_PROJECT);
    assert!(matches!(process.runner, Runs::Process(_)));

    let flag = settings(&[IMAGES, "--pubsub=b:2"], &host).unwrap();
    assert_eq!(flag.bus, Bus::Emulator("b:2".to_owned()));
    let own = settings(&[IMAGES, "--emulate=127.0.0.1:0"], &host).unwrap();
    assert!(matches!(own.bus, Bus::Own(_)));
}

#[test]
fn what_is_empty_is_not_set() {
    let empty = [("PUBSUB_EMULATOR_HOST", ""), ("GOOGLE_CLOUD_PROJECT", "p")];
    let settings = settings(&[IMAGES, "--queue=", "--store=", "--replica="], &empty).unwrap();
    assert_eq!(settings.bus, Bus::Google);
    let Runs::Kubernetes(kubernetes) = settings.runner else { panic!("{:?}", settings.runner) };
    assert_eq!(kubernetes.queue, None);
}

#[test]
fn names_for_what_is_not_there_yet_are_told() {
    let ours = [("GOOGLE_CLOUD_PROJECT", "p"), ("BIGQUERY_EVENTS_TABLE", "a.b.c")];
    let unused = settings(&[IMAGES], &ours).unwrap().unused;
    assert_eq!(unused.len(), 1);
    assert!(unused[0].starts_with("BIGQUERY_EVENTS_TABLE is not used by this version"));
}

#[test]
fn what_is_for_another_runner_is_told() {
    let unused = |args: &[&str]| settings(args, &[("GOOGLE_CLOUD_PROJECT", "p")]).unwrap().unused;
    let pods = unused(&[IMAGES, "--tag=t", "--max-runs=1", "--queue=q"]);
    assert_eq!(pods.len(), 2, "{pods:?}");
    assert!(pods[0].starts_with("`--tag` is not used with `--runner kubernetes`"), "{pods:?}");
    let processes = unused(&["--runner=process", IMAGES, "--queue=q", "--tag=t"]);
    assert_eq!(processes.len(), 2, "{processes:?}");
    assert!(processes[1].starts_with("`--queue` is not used with `--runner process`"));
}

#[test]
fn a_lease_is_of_one_topic() {
    assert_eq!(lease_name("a.b"), "twined-a.b");
    let (upper, lower) = (lease_name("Main"), lease_name("main"));
    assert_ne!(upper, lower);
    for topic in ["Main", "a_b", &"x".repeat(200), "ends.", "%+~"] {
        check_name("--name", &lease_name(topic)).unwrap();
    }
}
