//! Daemons and supervisors that are killed.

use super::*;
use crate::helper;
use rustix::process::getsid;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

/// A daemon, in a process of its own, that launches forty questions.
fn daemon(network: &TestNetwork) -> std::process::Child {
    helper::command("run-processes").arg(&network.folder).arg(TWINED).spawn().unwrap()
}

fn kill(mut process: std::process::Child) {
    process.kill().unwrap();
    process.wait().unwrap();
}

/// Waits until all have ended without an error, and checks that each ran once.
async fn each_runs_once(network: &TestNetwork, runner: &dyn Runner) {
    let mut watch = Watch::new(runner);
    for ask in forty_questions() {
        let end = watch.end(ask.run).await;
        assert_eq!(end.cause.reason, EndReason::Exited, "{end:?}");
    }
    let mut ran = network.lines("ran");
    ran.sort();
    assert_eq!(ran, forty_questions().map(|ask| ask.run.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_loses_nothing_and_repeats_nothing() {
    let network = TestNetwork::new().slots(20);
    let daemon = daemon(&network);
    network.wait_for_lines("launched", 1).await;
    network.wait_for_lines("ran", 20).await;

    kill(daemon);
    let runner = network.start().await;

    let mut watch = Watch::new(&runner);
    watch.running(forty_questions().next().unwrap().run).await;
    assert_eq!(watch.now(&runner).await.len(), 40);
    assert_eq!(network.lines("ran").len(), 20);
    network.go();
    each_runs_once(&network, &runner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_again_and_again_repeats_nothing() {
    let network = TestNetwork::new();
    // Runs start and end throughout.
    network.go();
    for ran in [1, 4, 8, 13, 19, 26, 34] {
        let daemon = daemon(&network);
        network.wait_for_lines("ran", ran).await;
        kill(daemon);
    }
    let runner = network.start().await;
    for ask in forty_questions() {
        ask.launch(&runner).await.unwrap();
    }
    each_runs_once(&network, &runner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_without_a_daemon_is_reported_by_the_next_one() {
    let network = TestNetwork::new();
    let runner = network.start().await;
    let ask = Ask::new(WAITS);
    ask.launch(&runner).await.unwrap();
    Watch::new(&runner).running(ask.run).await;
    runner.stop().await;
    network.go();
    wait_until(|| {
        matches!(network.run_folder(ask.run).supervisor_state(), Ok(SupervisorState::Dead))
    })
    .await;

    let end = Watch::new(&network.start().await).end(ask.run).await;
    assert_eq!(end.cause.reason, EndReason::Exited);
    assert_eq!(network.lines("ran").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_run_can_be_cancelled() {
    let network = TestNetwork::new();
    let runner = network.start().await;
    let ask = Ask::new(ENDLESS);
    ask.launch(&runner).await.unwrap();
    Watch::new(&runner).running(ask.run).await;
    runner.stop().await;

    let runner = network.start().await;
    runner.cancel(ask.run.question).await.unwrap();
    assert_eq!(Watch::new(&runner).end(ask.run).await.cause.reason, EndReason::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_supervisor_leaves_a_lost_run_and_no_process() {
    let script = "echo $PPID > $NETWORK/supervisor; setsid sleep 1000 & echo $! > $NETWORK/pid
        while :; do sleep 1; done";
    let network = TestNetwork::new().service("test/orphan:1.0", script);
    let runner = network.start().await;
    let ask = Ask::new("test/orphan:1.0");
    ask.launch(&runner).await.unwrap();
    let pid = network.wait_for_pid("pid").await;
    let supervisor = network.wait_for_pid("supervisor").await;
    // A session of its own: no terminal of the tests ends it.
    assert_eq!(getsid(Some(supervisor)).unwrap(), supervisor);

    kill_process(supervisor, Signal::KILL).unwrap();

    let end = Watch::new(&runner).end(ask.run).await;
    assert_eq!(end.cause.reason, EndReason::Lost);
    wait_until(|| !exists(pid)).await;
    ask.launch(&runner).await.unwrap();
    assert_eq!(Watch::new(&runner).end(ask.run).await.at, end.at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_lost_without_a_daemon_is_reported_by_the_next_one() {
    let network =
        TestNetwork::new().service("test/orphan:1.0", "echo $PPID > $NETWORK/pid; exec sleep 1000");
    let runner = network.start().await;
    let ask = Ask::new("test/orphan:1.0");
    ask.launch(&runner).await.unwrap();
    let supervisor = network.wait_for_pid("pid").await;
    runner.stop().await;
    kill_process(supervisor, Signal::KILL).unwrap();
    wait_until(|| {
        matches!(network.run_folder(ask.run).supervisor_state(), Ok(SupervisorState::Dead))
    })
    .await;

    let end = Watch::new(&network.start().await).end(ask.run).await;
    assert_eq!(end.cause.reason, EndReason::Lost);
    assert!(end.started.is_some());
}

/// Makes the first `deaths` supervisors die as they start.
fn kill_supervisors(network: &mut TestNetwork, deaths: usize) {
    let script = network.file("supervisor");
    let count = network.file("deaths");
    let count = count.display();
    let text = format!(
        "#!/bin/sh\necho died >> {count}\n\
         [ $(wc -l < {count}) -le {deaths} ] && kill -9 $$\nexec {TWINED} \"$@\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    network.options.supervisor = script;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_killed_before_it_starts_the_child_is_started_again() {
    let mut network = TestNetwork::new();
    kill_supervisors(&mut network, 2);
    network.go();
    let end = Ask::new(WAITS).end(&network.start().await).await;
    assert_eq!(end.cause.reason, EndReason::Exited);
    assert_eq!((network.lines("deaths").len(), network.lines("ran").len()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn supervisors_that_never_start_are_reported_after_three_attempts() {
    let mut network = TestNetwork::new();
    kill_supervisors(&mut network, 100);
    let end = Ask::new(WAITS).end(&network.start().await).await;
    assert_eq!(end.cause.reason, EndReason::NotStarted);

    network.options.supervisor = "/no/such/twined".into();
    let end = Ask::new(WAITS).end(&network.start().await).await;
    assert_eq!(end.cause.reason, EndReason::NotStarted);
    assert!(end.cause.message.contains("`/no/such/twined`"), "{}", end.cause.message);
    assert!(network.lines("ran").is_empty());
}

/// A run on disk without a runner, and the command for its supervisor.
fn stored_run(network: &TestNetwork) -> (RunFolder, Vec<u8>) {
    fs::create_dir_all(&network.options.runs).unwrap();
    let run = RunId { question: Uuid::new_v4(), retry: 0 };
    let folder = network.run_folder(run);
    let spec = RunSpec {
        sequence: 0,
        launched: 0,
        recipient: WAITS.to_owned(),
        parent_question: None,
        attributes: Default::default(),
        input_values: None,
        input_manifest: None,
    };
    assert!(folder.create(&spec, b"{}").unwrap());
    let command = ChildCommand {
        service: WAITS.to_owned(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), WAITS_SCRIPT.into()],
        folder: network.folder.clone(),
        environment: vec![
            ("NETWORK".into(), network.folder.clone().into()),
            ("TWINED_RUN".into(), folder.path().into()),
            ("PATH".into(), "/usr/bin:/bin".into()),
        ],
    };
    (folder, serde_json::to_vec(&command).unwrap())
}

fn supervisor(folder: &RunFolder) -> std::process::Child {
    Command::new(TWINED)
        .arg("supervise")
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_command_starts_no_child() {
    let network = TestNetwork::new();
    let (folder, command) = stored_run(&network);
    let mut truncated = supervisor(&folder);
    truncated.stdin.take().unwrap().write_all(&command[..command.len() / 2]).unwrap();
    assert!(!truncated.wait().unwrap().success());
    assert_eq!(folder.started_at().unwrap(), None);

    let mut killed = supervisor(&folder);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(folder.started_at().unwrap(), None);

    network.go();
    let runner = network.start().await;
    let run = Watch::new(&runner).any().await;
    assert_eq!(Watch::new(&runner).end(run).await.cause.reason, EndReason::Exited);
    assert_eq!(network.lines("ran").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_supervisors_starts_the_child() {
    let network = TestNetwork::new();
    let (folder, command) = stored_run(&network);
    let mut both = [supervisor(&folder), supervisor(&folder)];
    for one in &mut both {
        one.stdin.take().unwrap().write_all(&command).unwrap();
    }
    network.wait_for_lines("ran", 1).await;
    network.go();
    for mut one in both {
        assert!(one.wait().unwrap().success());
    }
    assert_eq!(network.lines("ran").len(), 1);
    assert_eq!(folder.end_record().unwrap().unwrap().outcome, Outcome::Exit(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_stop_before_the_child_starts_is_followed() {
    let network = TestNetwork::new();
    let (folder, command) = stored_run(&network);
    let mut supervisor = supervisor(&folder);
    folder.request_stop(StopRequest::Cancel).unwrap();
    supervisor.stdin.take().unwrap().write_all(&command).unwrap();
    supervisor.wait().unwrap();

    let record = folder.end_record().unwrap().unwrap();
    assert_eq!(
        (record.outcome, record.stop_request),
        (Outcome::StoppedBeforeStart, Some(StopRequest::Cancel))
    );
    assert!(network.lines("ran").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_may_have_started_is_never_started_again() {
    let network = TestNetwork::new();
    let (folder, _) = stored_run(&network);
    assert!(folder.claim_start(7).unwrap());

    let runner = network.start().await;
    let run = Watch::new(&runner).any().await;
    let end = Watch::new(&runner).end(run).await;
    assert_eq!((end.cause.reason, end.started), (EndReason::Lost, Some(Timestamp(7))));
    assert!(network.lines("ran").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_folders_and_other_files_are_ignored() {
    let network = TestNetwork::new();
    let (good, _) = stored_run(&network);
    network.go();
    let runs = &network.options.runs;
    let name = |n: u128| format!("question-{}", Uuid::from_u128(n));
    for incomplete in [format!(".new-{}", name(1)), format!(".old-{}", name(2))] {
        fs::create_dir(runs.join(&incomplete)).unwrap();
        fs::write(runs.join(&incomplete).join("run.json"), "{").unwrap();
    }
    fs::create_dir(runs.join(name(3))).unwrap();
    fs::create_dir(runs.join(name(4))).unwrap();
    fs::write(runs.join(name(4)).join("run.json"), "not JSON").unwrap();
    fs::write(runs.join(name(5)), "a file").unwrap();
    fs::write(runs.join("notes.txt"), "a person's").unwrap();
    let (no_fifo, _) = stored_run(&network);
    fs::remove_file(no_fifo.path().join("life")).unwrap();

    let runner = network.start().await;
    let run = Watch::new(&runner).any().await;

    let end = Watch::new(&runner).end(run).await;
    assert_eq!(end.cause.reason, EndReason::Exited);
    assert_eq!(good.end_record().unwrap().unwrap().at, end.at.0);
    assert_eq!(Watch::new(&runner).now(&runner).await.len(), 1);
    let mut remaining: Vec<_> =
        fs::read_dir(runs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    remaining.sort();
    assert_eq!(remaining.len(), 7, "{remaining:?}");

    let bad = Ask { run: RunId { question: Uuid::from_u128(4), retry: 0 }, ..Ask::new(GOOD) };
    assert!(matches!(bad.launch(&runner).await, Err(RunnerError::Unavailable { .. })));
}
