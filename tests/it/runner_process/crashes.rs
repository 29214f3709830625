//! What is killed in the midst of its work: the daemon, a supervisor.

use super::*;
use crate::helper;
use rustix::process::getsid;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

/// A daemon in a process of its own that launches the whole crowd.
fn daemon(world: &World) -> std::process::Child {
    helper::command("run-processes").arg(&world.folder).arg(TWINED).spawn().unwrap()
}

fn kill(mut process: std::process::Child) {
    process.kill().unwrap();
    process.wait().unwrap();
}

/// Waits until all have ended well, each having run once.
async fn each_runs_once(world: &World, runner: &dyn Runner) {
    let mut watch = Watch::new(runner);
    for ask in crowd() {
        let end = watch.end(ask.run).await;
        assert_eq!(end.reason, EndReason::Exited, "{end:?}");
    }
    let mut ran = world.lines("ran");
    ran.sort();
    assert_eq!(ran, crowd().map(|ask| ask.run.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_loses_nothing_and_repeats_nothing() {
    let world = World::new().slots(20);
    let daemon = daemon(&world);
    world.wait_for_lines("launched", 1).await;
    world.wait_for_lines("ran", 20).await;

    kill(daemon);
    let runner = world.start().await;

    let mut watch = Watch::new(&runner);
    watch.running(crowd().next().unwrap().run).await;
    assert_eq!(watch.now(&runner).await.len(), 40);
    assert_eq!(world.lines("ran").len(), 20);
    world.go();
    each_runs_once(&world, &runner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_again_and_again_repeats_nothing() {
    let world = World::new();
    // Runs begin and end all the while.
    world.go();
    for ran in [1, 4, 8, 13, 19, 26, 34] {
        let daemon = daemon(&world);
        world.wait_for_lines("ran", ran).await;
        kill(daemon);
    }
    let runner = world.start().await;
    for ask in crowd() {
        ask.launch(&runner).await.unwrap();
    }
    each_runs_once(&world, &runner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_while_nobody_looks_is_told_to_the_next() {
    let world = World::new();
    let runner = world.start().await;
    let ask = Ask::new(WAITS);
    ask.launch(&runner).await.unwrap();
    Watch::new(&runner).running(ask.run).await;
    runner.stop().await;
    world.go();
    wait_until(|| matches!(world.run_folder(ask.run).life(), Ok(Life::Nobody))).await;

    let end = Watch::new(&world.start().await).end(ask.run).await;
    assert_eq!(end.reason, EndReason::Exited);
    assert_eq!(world.lines("ran").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_adopted_can_be_cancelled() {
    let world = World::new();
    let runner = world.start().await;
    let ask = Ask::new(ENDLESS);
    ask.launch(&runner).await.unwrap();
    Watch::new(&runner).running(ask.run).await;
    runner.stop().await;

    let runner = world.start().await;
    runner.cancel(ask.run.question).await.unwrap();
    assert_eq!(Watch::new(&runner).end(ask.run).await.reason, EndReason::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_supervisor_leaves_a_lost_run_and_no_process() {
    let script = "echo $PPID > $WORLD/supervisor; setsid sleep 1000 & echo $! > $WORLD/pid
        while :; do sleep 1; done";
    let world = World::new().service("test/orphan:1.0", script);
    let runner = world.start().await;
    let ask = Ask::new("test/orphan:1.0");
    ask.launch(&runner).await.unwrap();
    let pid = world.wait_for_pid("pid").await;
    let supervisor = world.wait_for_pid("supervisor").await;
    // No terminal of ours is its own.
    assert_eq!(getsid(Some(supervisor)).unwrap(), supervisor);

    kill_process(supervisor, Signal::KILL).unwrap();

    let end = Watch::new(&runner).end(ask.run).await;
    assert_eq!(end.reason, EndReason::Lost);
    wait_until(|| !is_there(pid)).await;
    ask.launch(&runner).await.unwrap();
    assert_eq!(Watch::new(&runner).end(ask.run).await.at, end.at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_lost_while_nobody_looked_is_told_to_the_next() {
    let world = World::new().service("test/orphan:1.0", "echo $PPID > $WORLD/pid; exec sleep 1000");
    let runner = world.start().await;
    let ask = Ask::new("test/orphan:1.0");
    ask.launch(&runner).await.unwrap();
    let supervisor = world.wait_for_pid("pid").await;
    runner.stop().await;
    kill_process(supervisor, Signal::KILL).unwrap();
    wait_until(|| matches!(world.run_folder(ask.run).life(), Ok(Life::Nobody))).await;

    let end = Watch::new(&world.start().await).end(ask.run).await;
    assert_eq!(end.reason, EndReason::Lost);
    assert!(end.started.is_some());
}

/// A supervisor that is killed as it starts, as often as `$WORLD` says, and then is ours.
fn doomed(world: &mut World, deaths: usize) {
    let script = world.file("doomed");
    let count = world.file("deaths");
    let count = count.display();
    let text = format!(
        "#!/bin/sh\necho died >> {count}\n\
         [ $(wc -l < {count}) -le {deaths} ] && kill -9 $$\nexec {TWINED} \"$@\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    world.options.supervisor = script;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_killed_before_it_starts_the_child_is_started_again() {
    let mut world = World::new();
    doomed(&mut world, 2);
    world.go();
    let end = Ask::new(WAITS).end(&world.start().await).await;
    assert_eq!(end.reason, EndReason::Exited);
    assert_eq!((world.lines("deaths").len(), world.lines("ran").len()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn supervisors_that_never_come_up_are_told_and_not_tried_for_ever() {
    let mut world = World::new();
    doomed(&mut world, 100);
    let end = Ask::new(WAITS).end(&world.start().await).await;
    assert_eq!(end.reason, EndReason::NotStarted);

    world.options.supervisor = "/no/such/twined".into();
    let end = Ask::new(WAITS).end(&world.start().await).await;
    assert_eq!(end.reason, EndReason::NotStarted);
    assert!(end.message.contains("`/no/such/twined`"), "{}", end.message);
    assert!(world.lines("ran").is_empty());
}

/// A run that is on disk, and what its supervisor would be told, with no runner.
fn by_hand(world: &World) -> (Folder, Vec<u8>) {
    fs::create_dir_all(&world.options.runs).unwrap();
    let run = RunId { question: Uuid::new_v4(), retry: 0 };
    let folder = world.run_folder(run);
    let asked = Asked {
        sequence: 0,
        launched: 0,
        recipient: WAITS.to_owned(),
        parent_question: None,
        attributes: Default::default(),
        input_values: None,
        input_manifest: None,
    };
    assert!(folder.make(&asked, b"{}").unwrap());
    let plan = Plan {
        service: WAITS.to_owned(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), WAITS_SCRIPT.into()],
        folder: world.folder.clone(),
        environment: vec![
            ("WORLD".into(), world.folder.clone().into()),
            ("TWINED_RUN".into(), folder.path().into()),
            ("PATH".into(), "/usr/bin:/bin".into()),
        ],
    };
    (folder, serde_json::to_vec(&plan).unwrap())
}

fn supervisor(folder: &Folder) -> std::process::Child {
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
async fn a_runner_killed_as_it_tells_the_plan_has_started_nothing() {
    let world = World::new();
    let (folder, plan) = by_hand(&world);
    let mut cut_off = supervisor(&folder);
    cut_off.stdin.take().unwrap().write_all(&plan[..plan.len() / 2]).unwrap();
    assert!(!cut_off.wait().unwrap().success());
    assert_eq!(folder.started().unwrap(), None);

    let mut killed = supervisor(&folder);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(folder.started().unwrap(), None);

    world.go();
    let runner = world.start().await;
    let run = Watch::new(&runner).any().await;
    assert_eq!(Watch::new(&runner).end(run).await.reason, EndReason::Exited);
    assert_eq!(world.lines("ran").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_supervisors_one_starts_the_child() {
    let world = World::new();
    let (folder, plan) = by_hand(&world);
    let mut both = [supervisor(&folder), supervisor(&folder)];
    for one in &mut both {
        one.stdin.take().unwrap().write_all(&plan).unwrap();
    }
    world.wait_for_lines("ran", 1).await;
    world.go();
    for mut one in both {
        assert!(one.wait().unwrap().success());
    }
    assert_eq!(world.lines("ran").len(), 1);
    assert_eq!(folder.ending().unwrap().unwrap().how, How::Exit(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_given_before_the_child_is_obeyed() {
    let world = World::new();
    let (folder, plan) = by_hand(&world);
    let mut supervisor = supervisor(&folder);
    folder.stop(Order::Cancel).unwrap();
    supervisor.stdin.take().unwrap().write_all(&plan).unwrap();
    supervisor.wait().unwrap();

    let ending = folder.ending().unwrap().unwrap();
    assert_eq!((ending.how, ending.order), (How::NotBegun, Some(Order::Cancel)));
    assert!(world.lines("ran").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_may_have_started_is_never_started_again() {
    let world = World::new();
    let (folder, _) = by_hand(&world);
    assert!(folder.start(7).unwrap());

    let runner = world.start().await;
    let run = Watch::new(&runner).any().await;
    let end = Watch::new(&runner).end(run).await;
    assert_eq!((end.reason, end.started), (EndReason::Lost, Some(Timestamp(7))));
    assert!(world.lines("ran").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_folders_do_no_harm() {
    let world = World::new();
    let (good, _) = by_hand(&world);
    world.go();
    let runs = &world.options.runs;
    let name = |n: u128| format!("question-{}", Uuid::from_u128(n));
    for half_made in [format!(".new-{}", name(1)), format!(".old-{}", name(2))] {
        fs::create_dir(runs.join(&half_made)).unwrap();
        fs::write(runs.join(&half_made).join("run.json"), "{").unwrap();
    }
    fs::create_dir(runs.join(name(3))).unwrap();
    fs::create_dir(runs.join(name(4))).unwrap();
    fs::write(runs.join(name(4)).join("run.json"), "not JSON").unwrap();
    fs::write(runs.join(name(5)), "a file").unwrap();
    fs::write(runs.join("notes.txt"), "a person's").unwrap();
    let (no_fifo, _) = by_hand(&world);
    fs::remove_file(no_fifo.path().join("life")).unwrap();

    let runner = world.start().await;
    let run = Watch::new(&runner).any().await;

    let end = Watch::new(&runner).end(run).await;
    assert_eq!(end.reason, EndReason::Exited);
    assert_eq!(good.ending().unwrap().unwrap().at, end.at.0);
    assert_eq!(Watch::new(&runner).now(&runner).await.len(), 1);
    let mut left: Vec<_> =
        fs::read_dir(runs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left.len(), 7, "{left:?}");

    let bad = Ask { run: RunId { question: Uuid::from_u128(4), retry: 0 }, ..Ask::new(GOOD) };
    assert!(matches!(bad.launch(&runner).await, Err(RunnerError::Unavailable { .. })));
}
