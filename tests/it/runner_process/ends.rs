//! How runs end, and that nothing of them is left.

use super::*;
use std::os::unix::fs::PermissionsExt;

/// Starts a process that leaves its group and its session, ignores SIGTERM, and has lost its
/// parent; its pid is in `$WORLD/stray`.
const STRAY: &str = r#"setsid sh -c 'trap "" TERM
    (sh -c "echo \$\$ > $WORLD/stray.new; mv $WORLD/stray.new $WORLD/stray; exec sleep 1000" &)' &
    until [ -e $WORLD/stray ]; do sleep 0.01; done"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_tree_is_ended_whole() {
    let script = format!("trap '' TERM\n{STRAY}\necho $$ > $WORLD/pid\nwhile :; do sleep 1; done");
    let world = World::new().service("test/stubborn:1.0", &script);
    let runner = world.start().await;
    let ask = Ask::new("test/stubborn:1.0");
    ask.launch(&runner).await.unwrap();
    let pids = [world.wait_for_pid("pid").await, world.wait_for_pid("stray").await];
    assert!(pids.iter().all(|&pid| is_there(pid)));

    let since = Instant::now();
    assert!(runner.cancel(ask.run.question).await.unwrap());
    let end = Watch::new(&runner).end(ask.run).await;

    assert_eq!(end.reason, EndReason::Cancelled);
    assert!(since.elapsed() >= Duration::from_secs(3), "it has its grace");
    assert!(pids.iter().all(|&pid| !is_there(pid)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_heeds_sigterm_ends_at_once_and_in_its_own_way() {
    let script = "trap 'echo bye; exit 5' TERM; echo up > $WORLD/up; while :; do sleep 0.1; done";
    let world = World::new().service("test/heeds:1.0", script);
    let runner = world.start().await;
    let ask = Ask::new("test/heeds:1.0");
    ask.launch(&runner).await.unwrap();
    world.wait_for_lines("up", 1).await;

    runner.cancel(ask.run.question).await.unwrap();

    let end = Watch::new(&runner).end(ask.run).await;
    assert_eq!(end.reason, EndReason::Cancelled);
    assert_eq!(end.tail.last().map(String::as_str), Some("bye\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_while_it_waits_never_starts() {
    let world = World::new().slots(0);
    let runner = world.start().await;
    let ask = Ask::new(WAITS);
    ask.launch(&runner).await.unwrap();

    assert!(runner.cancel(ask.run.question).await.unwrap());

    let end = Watch::new(&runner).end(ask.run).await;
    assert_eq!((end.reason, end.started), (EndReason::Cancelled, None));
    runner.stop().await;
    let next = world.slots(4);
    let runner = next.start().await;
    assert_eq!(Watch::new(&runner).end(ask.run).await.at, end.at);
    assert!(next.lines("ran").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_as_it_starts_ends_all_the_same() {
    let world = World::new();
    let runner = world.start().await;
    let asks: Vec<_> = (0..12).map(|_| Ask::new(ENDLESS)).collect();
    let mut watch = Watch::new(&runner);
    for ask in &asks {
        let (launched, cancelled) =
            tokio::join!(ask.launch(&runner), runner.cancel(ask.run.question));
        launched.unwrap();
        assert!(cancelled.unwrap(), "it was being launched");
    }
    for ask in &asks {
        assert_eq!(watch.end(ask.run).await.reason, EndReason::Cancelled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_by_itself_leaves_nothing_running() {
    let world = World::new().service("test/litters:1.0", &format!("{STRAY}\nexit 0"));
    let runner = world.start().await;

    let end = Ask::new("test/litters:1.0").end(&runner).await;

    assert_eq!(end.reason, EndReason::Exited);
    assert!(!is_there(world.wait_for_pid("stray").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_killed_by_hand_keeps_its_last_words() {
    let script = "echo first; printf 'last words'; echo $$ > $WORLD/pid; while :; do sleep 1; done";
    let world = World::new().service("test/talks:1.0", script);
    let runner = world.start().await;
    let ask = Ask::new("test/talks:1.0");
    ask.launch(&runner).await.unwrap();
    kill_process(world.wait_for_pid("pid").await, Signal::KILL).unwrap();

    let end = Watch::new(&runner).end(ask.run).await;

    assert_eq!(end.reason, EndReason::Killed);
    assert!(end.message.contains("signal 9 (SIGKILL)"), "{}", end.message);
    assert_eq!(end.tail, ["first\n", "last words\n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_bounded_and_kept_after_the_run_is_settled() {
    let script = "yes chatter | head -c 20000000; echo; echo last >&2";
    let world = World::new().service("test/chatty:1.0", script);
    let runner = world.start().await;
    let ask = Ask::new("test/chatty:1.0");

    let end = ask.end(&runner).await;

    assert_eq!(end.tail.len(), 80);
    assert_eq!(end.tail[79], "last\n");
    runner.settle(ask.run).await.unwrap();
    let log = fs::read_to_string(world.options.logs.join(format!("{}.log", ask.run))).unwrap();
    assert!((8 << 20..=16 << 20).contains(&log.len()), "{}", log.len());
    assert!(log.ends_with("\nlast\n"));
    assert!(!world.run_folder(ask.run).path().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_started_is_told_with_the_remedy() {
    let mut world = World::new()
        .program("test/absent:1.0", &["octue", "twined", "question", "ask-local"])
        .program("test/gone:1.0", &["sh"])
        .program("test/dotenv:1.0", &["sh"])
        .program("test/path:1.0", &["./missing"])
        .program("test/format:1.0", &["./bad"])
        .program("test/denied:1.0", &["./denied"]);
    fs::remove_dir(world.service_folder("test/gone:1.0")).unwrap();
    fs::write(world.service_folder("test/dotenv:1.0").join(".env"), "A=1\nsecret words\n").unwrap();
    fs::write(world.service_folder("test/denied:1.0").join("denied"), "").unwrap();
    let bad = world.service_folder("test/format:1.0").join("bad");
    fs::write(&bad, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(bad, fs::Permissions::from_mode(0o755)).unwrap();
    world.options.inherited.clear();
    let runner = world.start().await;

    for (recipient, words) in [
        (
            "test/absent:1.0",
            &["program `octue`", "/.venv/bin", "PATH `/usr", "pip install octue"][..],
        ),
        ("test/gone:1.0", &["test-gone-1.0` is not there"]),
        ("test/dotenv:1.0", &["line 2 of `", ".env`"]),
        ("test/path:1.0", &["failed to execute `", "missing`", "install it again"]),
        ("test/format:1.0", &["failed to execute `", "bad`", "interpreter"]),
        ("test/denied:1.0", &["failed to execute `", "denied`", "chmod"]),
    ] {
        let ask = Ask::new(recipient);
        let end = ask.end(&runner).await;
        assert_eq!(end.reason, EndReason::NotStarted, "{end:?}");
        assert!(words.iter().all(|word| end.message.contains(word)), "{}", end.message);
        assert!(!end.message.contains("secret"), "{}", end.message);
        runner.settle(ask.run).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_seen_at_once() {
    let world = World::new().service("test/timed:1.0", "date +%s%6N");
    let runner = world.start().await;
    let mut watch = Watch::new(&runner);
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let ask = Ask::new("test/timed:1.0");
        let launched = Timestamp::now();
        ask.launch(&runner).await.unwrap();
        let end = watch.end(ask.run).await;
        let seen = Timestamp::now();
        let ran = Timestamp(end.tail[0].trim().parse().unwrap());
        starts.push(ran.seconds_since(launched));
        ends.push(seen.seconds_since(ran));
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (start, end) = (median(&mut starts), median(&mut ends));
    // A tenth of a second is the promise; the rest is for a machine with much else to do.
    assert!(end < 0.5, "launched in {start} s, seen {end} s after the end");
    eprintln!("launch to child: {start:.4} s; child's last act to seen: {end:.4} s");
}
