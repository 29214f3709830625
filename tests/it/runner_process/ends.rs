//! How runs end, and that no process of them is left.

use super::*;
use std::os::unix::fs::PermissionsExt;

/// Starts an orphan that has left the process group and the session, and ignores SIGTERM. Its pid
/// is in `$NETWORK/orphan`.
const START_ORPHAN: &str = r#"setsid sh -c 'trap "" TERM
    (sh -c "echo \$\$ > $NETWORK/orphan.new; mv $NETWORK/orphan.new $NETWORK/orphan; exec sleep 1000" &)' &
    until [ -e $NETWORK/orphan ]; do sleep 0.01; done"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_leaves_no_process() {
    let script =
        format!("trap '' TERM\n{START_ORPHAN}\necho $$ > $NETWORK/pid\nwhile :; do sleep 1; done");
    let network = TestNetwork::new().service("test/stubborn:1.0", &script);
    let runner = network.start().await;
    let ask = Ask::new("test/stubborn:1.0");
    ask.launch(&runner).await.unwrap();
    let pids = [network.wait_for_pid("pid").await, network.wait_for_pid("orphan").await];
    assert!(pids.iter().all(|&pid| exists(pid)));

    let since = Instant::now();
    assert!(runner.cancel(ask.run.question).await.unwrap());
    let end = Watch::new(&runner).end(ask.run).await;

    assert_eq!(end.cause.reason, EndReason::Cancelled);
    assert!(since.elapsed() >= Duration::from_secs(3), "the grace period was cut short");
    assert!(pids.iter().all(|&pid| !exists(pid)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_handles_sigterm_ends_before_the_grace_period() {
    let script = "trap 'echo bye; exit 5' TERM; echo up > $NETWORK/up; while :; do sleep 0.1; done";
    let network = TestNetwork::new().service("test/handles:1.0", script);
    let runner = network.start().await;
    let ask = Ask::new("test/handles:1.0");
    ask.launch(&runner).await.unwrap();
    network.wait_for_lines("up", 1).await;

    runner.cancel(ask.run.question).await.unwrap();

    let end = Watch::new(&runner).end(ask.run).await;
    assert_eq!(end.cause.reason, EndReason::Cancelled);
    assert_eq!(end.tail.last().map(String::as_str), Some("bye\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_run_that_is_cancelled_never_starts() {
    let network = TestNetwork::new().slots(0);
    let runner = network.start().await;
    let ask = Ask::new(WAITS);
    ask.launch(&runner).await.unwrap();

    assert!(runner.cancel(ask.run.question).await.unwrap());

    let end = Watch::new(&runner).end(ask.run).await;
    assert_eq!((end.cause.reason, end.started), (EndReason::Cancelled, None));
    runner.stop().await;
    let next = network.slots(4);
    let runner = next.start().await;
    assert_eq!(Watch::new(&runner).end(ask.run).await.at, end.at);
    assert!(next.lines("ran").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cancelled_as_it_starts_ends() {
    let network = TestNetwork::new();
    let runner = network.start().await;
    let asks: Vec<_> = (0..12).map(|_| Ask::new(ENDLESS)).collect();
    let mut watch = Watch::new(&runner);
    for ask in &asks {
        let (launched, cancelled) =
            tokio::join!(ask.launch(&runner), runner.cancel(ask.run.question));
        launched.unwrap();
        assert!(cancelled.unwrap(), "it was being launched");
    }
    for ask in &asks {
        assert_eq!(watch.end(ask.run).await.cause.reason, EndReason::Cancelled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_exits_leaves_no_process() {
    let network =
        TestNetwork::new().service("test/orphans:1.0", &format!("{START_ORPHAN}\nexit 0"));
    let runner = network.start().await;

    let end = Ask::new("test/orphans:1.0").end(&runner).await;

    assert_eq!(end.cause.reason, EndReason::Exited);
    assert!(!exists(network.wait_for_pid("orphan").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_output_of_a_killed_child_is_reported() {
    let script =
        "echo first; printf 'last words'; echo $$ > $NETWORK/pid; while :; do sleep 1; done";
    let network = TestNetwork::new().service("test/talks:1.0", script);
    let runner = network.start().await;
    let ask = Ask::new("test/talks:1.0");
    ask.launch(&runner).await.unwrap();
    kill_process(network.wait_for_pid("pid").await, Signal::KILL).unwrap();

    let end = Watch::new(&runner).end(ask.run).await;

    assert_eq!(end.cause.reason, EndReason::Killed);
    assert!(end.cause.message.contains("signal 9 (SIGKILL)"), "{}", end.cause.message);
    assert_eq!(end.tail, ["first\n", "last words\n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_limited_and_retained_after_the_run_is_settled() {
    let script = "yes chatter | head -c 20000000; echo; echo last >&2";
    let network = TestNetwork::new().service("test/chatty:1.0", script);
    let runner = network.start().await;
    let ask = Ask::new("test/chatty:1.0");

    let end = ask.end(&runner).await;

    assert_eq!(end.tail.len(), 80);
    assert_eq!(end.tail[79], "last\n");
    runner.settle(ask.run).await.unwrap();
    let log = fs::read_to_string(network.options.logs.join(format!("{}.log", ask.run))).unwrap();
    assert!((8 << 20..=16 << 20).contains(&log.len()), "{}", log.len());
    assert!(log.ends_with("\nlast\n"));
    assert!(!network.run_folder(ask.run).path().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_be_started_is_reported_with_its_remedy() {
    let mut network = TestNetwork::new()
        .program("test/absent:1.0", &["octue", "twined", "question", "ask-local"])
        .program("test/gone:1.0", &["sh"])
        .program("test/dotenv:1.0", &["sh"])
        .program("test/path:1.0", &["./missing"])
        .program("test/format:1.0", &["./bad"])
        .program("test/denied:1.0", &["./denied"]);
    fs::remove_dir(network.service_folder("test/gone:1.0")).unwrap();
    fs::write(network.service_folder("test/dotenv:1.0").join(".env"), "A=1\nsecret words\n")
        .unwrap();
    fs::write(network.service_folder("test/denied:1.0").join("denied"), "").unwrap();
    let bad = network.service_folder("test/format:1.0").join("bad");
    fs::write(&bad, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(bad, fs::Permissions::from_mode(0o755)).unwrap();
    network.options.inherited.clear();
    let runner = network.start().await;

    for (recipient, words) in [
        (
            "test/absent:1.0",
            &["program `octue`", "/.venv/bin", "PATH `/usr", "pip install octue"][..],
        ),
        ("test/gone:1.0", &["test-gone-1.0` does not exist"]),
        ("test/dotenv:1.0", &["line 2 of `", ".env`"]),
        ("test/path:1.0", &["failed to execute `", "missing`", "install it again"]),
        ("test/format:1.0", &["failed to execute `", "bad`", "interpreter"]),
        ("test/denied:1.0", &["failed to execute `", "denied`", "chmod"]),
    ] {
        let ask = Ask::new(recipient);
        let end = ask.end(&runner).await;
        assert_eq!(end.cause.reason, EndReason::NotStarted, "{end:?}");
        assert!(words.iter().all(|word| end.cause.message.contains(word)), "{}", end.cause.message);
        assert!(!end.cause.message.contains("secret"), "{}", end.cause.message);
        runner.settle(ask.run).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_seen_immediately() {
    let network = TestNetwork::new().service("test/timed:1.0", "date +%s%6N");
    let runner = network.start().await;
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
    // A tenth of a second is the promise; the rest allows for a busy machine.
    assert!(end < 0.5, "launched in {start} s, seen {end} s after the end");
    eprintln!("launch to child: {start:.4} s; child's last output to seen: {end:.4} s");
}
