//! The gauge of live runs, which only the monitor sets: it must equal the states of any runner.

use crate::pipeline::World;
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use metrics_exporter_prometheus::PrometheusRecorder;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twined::event::RunId;
use twined::monitor::Monitor;
use twined::runner::{Coordinator, LaunchRequest, RunState, Runner, RunnerError, Settlement};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(30);

/// A runner that only has states.
struct States(Mutex<Option<BoxStream<'static, RunState>>>);

impl std::fmt::Debug for States {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("States")
    }
}

#[async_trait]
impl Runner for States {
    async fn launch(&self, _: LaunchRequest<'_>) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn cancel(&self, _: Uuid) -> Result<bool, RunnerError> {
        Ok(true)
    }

    async fn has(&self, _: RunId) -> Result<bool, RunnerError> {
        Ok(true)
    }

    async fn settle(&self, _: RunId) -> Result<Settlement, RunnerError> {
        Ok(Settlement::Ours)
    }

    fn states(&self) -> BoxStream<'static, RunState> {
        self.0.lock().unwrap().take().expect("one monitor")
    }
}

impl Coordinator for States {}

/// A monitor of these states, until it is dropped.
pub(crate) async fn monitor(states: BoxStream<'static, RunState>) -> (World, JoinSet<()>) {
    let world = World::new(0, None, 0).await;
    let runner = Arc::new(States(Mutex::new(Some(states))));
    let mut tasks = JoinSet::new();
    tasks.spawn(Monitor::new(world.dependencies(&runner), CancellationToken::new()).run());
    (world, tasks)
}

/// Waits until so many runs are queued, starting and running.
pub(crate) async fn wait_for(recorder: &PrometheusRecorder, counts: [u32; 3]) {
    let deadline = Instant::now() + DEADLINE;
    let line = |(state, count)| format!("twined_questions{{state=\"{state}\"}} {count}\n");
    let lines: Vec<_> =
        ["queued", "starting", "running"].into_iter().zip(counts).map(line).collect();
    loop {
        let rendered = recorder.handle().render();
        if lines.iter().all(|line| rendered.contains(line)) {
            return;
        }
        assert!(Instant::now() < deadline, "{lines:?}, not {rendered}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
