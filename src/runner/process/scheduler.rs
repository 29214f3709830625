//! The task that owns the state of all runs, and decides which of them starts.
//!
//! It never waits for a disk or a process: such work is a task of its own, which returns a
//! [`TaskOutcome`].

use crate::chain::Chain;
use crate::event::{RunId, Timestamp};
use crate::runner::process::folder_state::{StoredState, recorded_end};
use crate::runner::process::queue::{Queue, QueuedRun, RunStage};
use crate::runner::process::records::{EndRecord, RunSpec, StopRequest};
use crate::runner::process::retained_logs::retain;
use crate::runner::process::run_folder::RunFolder;
use crate::runner::process::run_task::{RunContext, RunTask, blocking};
use crate::runner::states::{Listeners, Mailbox};
use crate::runner::{RunEnd, RunPhase, RunnerError, Settlement};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::warn;
use uuid::Uuid;

/// Where the answer to a command goes. Its receiver may be gone.
pub(super) type Reply<T> = oneshot::Sender<Result<T, RunnerError>>;

/// A command to the scheduler.
#[derive(Debug)]
pub(super) enum SchedulerCommand {
    /// Makes sure that a run exists.
    Launch(Box<NewRun>, Reply<()>),
    /// Ends the runs of a question.
    Cancel(Uuid, Reply<bool>),
    /// Forgets a run.
    Settle(RunId, Reply<Settlement>),
    /// Adds a listener to the states of runs.
    Listen(Arc<Mailbox>),
    /// Starts no further run, and ends those that are active.
    Interrupt(oneshot::Sender<()>),
    /// Answers when every run is queued.
    Idle(oneshot::Sender<()>),
    /// Ends the scheduler. Active runs continue.
    Stop,
}

/// A run whose folder is to be created.
#[derive(Debug)]
pub(super) struct NewRun {
    pub(super) run: RunId,
    /// What to run. The scheduler sets its sequence number.
    pub(super) spec: RunSpec,
    /// The content of `question.json`.
    pub(super) question: Vec<u8>,
}

/// A run whose folder existed at the start.
#[derive(Debug)]
pub(super) struct StoredRun {
    pub(super) run: RunId,
    pub(super) spec: RunSpec,
    pub(super) state: StoredState,
}

/// Owns the state of all runs.
#[derive(Debug)]
pub(super) struct Scheduler {
    context: Arc<RunContext>,
    queue: Queue,
    listeners: Listeners,
    next_sequence: u64,
    creations: HashMap<RunId, PendingCreation>,
    tasks: JoinSet<TaskOutcome>,
    starts_sender: UnboundedSender<(RunId, Timestamp)>,
    starts: UnboundedReceiver<(RunId, Timestamp)>,
    interrupts: Vec<oneshot::Sender<()>>,
    idle_waiters: Vec<oneshot::Sender<()>>,
}

/// The commands that wait for a folder that is being created.
#[derive(Debug, Default)]
struct PendingCreation {
    launches: Vec<Reply<()>>,
    cancels: Vec<Reply<bool>>,
}

/// The result of a task.
#[derive(Debug)]
enum TaskOutcome {
    Created { run: RunId, spec: Box<RunSpec>, result: io::Result<Option<StoredState>> },
    Ended { run: RunId, end: RunEnd },
    Cancelled { question: Uuid, runs: Vec<(RunId, io::Result<Option<RunEnd>>)>, reply: Reply<bool> },
    Interrupted,
    Settled { run: RunId, result: io::Result<()>, reply: Reply<Settlement> },
}

// === impl Scheduler ===

impl Scheduler {
    /// A scheduler with the runs that exist, in the order of their launches.
    pub(super) fn new(context: Arc<RunContext>, stored: Vec<StoredRun>) -> Self {
        let (starts_sender, starts) = unbounded_channel();
        let mut scheduler = Self {
            queue: Queue::new(context.options.max_runs),
            context,
            listeners: Listeners::default(),
            next_sequence: stored.last().map_or(0, |last| last.spec.sequence + 1),
            creations: HashMap::new(),
            tasks: JoinSet::new(),
            starts_sender,
            starts,
            interrupts: Vec::new(),
            idle_waiters: Vec::new(),
        };
        for StoredRun { run, spec, state } in stored {
            scheduler.insert(run, spec, state);
        }
        scheduler
    }

    /// Runs until [`SchedulerCommand::Stop`], or until all senders of commands are dropped.
    pub(super) async fn run(mut self, mut commands: UnboundedReceiver<SchedulerCommand>) {
        loop {
            self.start_due();
            if !self.idle_waiters.is_empty() && self.is_idle() {
                for reply in self.idle_waiters.drain(..) {
                    let _ = reply.send(());
                }
            }
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(SchedulerCommand::Stop) => return,
                    Some(command) => self.handle(command),
                },
                Some((run, since)) = self.starts.recv() => {
                    if self.queue.started(run, since) {
                        self.publish(run);
                    }
                }
                Some(result) = self.tasks.join_next() => match result {
                    Ok(outcome) => self.task_ended(outcome),
                    // A run that no task follows must not appear to be followed.
                    Err(err) => match err.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => return,
                    },
                },
            }
        }
    }

    fn handle(&mut self, command: SchedulerCommand) {
        match command {
            SchedulerCommand::Launch(draft, reply) => self.launch(*draft, reply),
            SchedulerCommand::Cancel(question, reply) => self.cancel(question, reply),
            SchedulerCommand::Settle(run, reply) => self.settle(run, reply),
            SchedulerCommand::Listen(mailbox) => self.listeners.add(&mailbox, self.queue.states()),
            SchedulerCommand::Interrupt(reply) => self.interrupt(reply),
            SchedulerCommand::Idle(reply) => self.idle_waiters.push(reply),
            SchedulerCommand::Stop => {}
        }
    }

    fn task_ended(&mut self, outcome: TaskOutcome) {
        match outcome {
            TaskOutcome::Created { run, spec, result } => self.created(run, *spec, result),
            TaskOutcome::Ended { run, end } => self.ended(run, end),
            TaskOutcome::Cancelled { question, runs, reply } => {
                self.cancelled(question, runs, reply)
            }
            TaskOutcome::Settled { run, result, reply } => self.settled(run, result, reply),
            TaskOutcome::Interrupted => {}
        }
        if self.queue.active().next().is_none() {
            for reply in self.interrupts.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    fn start_due(&mut self) {
        while let Some(run) = self.queue.start_next() {
            let task = self.run_task(run);
            self.tasks.spawn(async move { TaskOutcome::Ended { run, end: task.start().await } });
        }
    }

    fn launch(&mut self, NewRun { run, mut spec, question }: NewRun, reply: Reply<()>) {
        if self.queue.get(run).is_some() {
            answer(reply, Ok(()));
            return;
        }
        if let Some(creation) = self.creations.get_mut(&run) {
            creation.launches.push(reply);
            return;
        }
        if !self.context.services.contains_key(&spec.recipient) {
            answer(reply, Err(not_found(run, &spec.recipient)));
            return;
        }
        spec.sequence = self.next_sequence;
        self.next_sequence += 1;
        let creation = PendingCreation { launches: vec![reply], ..PendingCreation::default() };
        self.creations.insert(run, creation);

        let folder = self.folder(run);
        let service = Arc::from(&*spec.recipient);
        self.tasks.spawn(async move {
            let act = move || {
                let result = match folder.create(&spec, &question) {
                    Ok(true) => Ok(Some(StoredState::Waiting)),
                    // The folder was put there after the start.
                    Ok(false) => folder.spec().and_then(|found| {
                        spec = found;
                        StoredState::read(&folder, &service).map(Some)
                    }),
                    Err(err) => Err(err),
                };
                TaskOutcome::Created { run, spec: Box::new(spec), result }
            };
            blocking(act).await
        });
    }

    fn created(&mut self, run: RunId, spec: RunSpec, result: io::Result<Option<StoredState>>) {
        let PendingCreation { launches, cancels } = self.creations.remove(&run).unwrap_or_default();
        match result {
            Ok(state) => {
                if let Some(state) = state {
                    self.insert(run, spec, state);
                    self.publish(run);
                }
                launches.into_iter().for_each(|reply| answer(reply, Ok(())));
            }
            Err(err) => {
                // An `io::Error` cannot be cloned for every launch.
                let text = Chain(&err).to_string();
                for reply in launches {
                    answer(reply, Err(unavailable("launch", run.question, text.clone().into())));
                }
            }
        }
        cancels.into_iter().for_each(|reply| self.cancel(run.question, reply));
    }

    /// Adds a run that is on disk.
    fn insert(&mut self, run: RunId, spec: RunSpec, state: StoredState) {
        let slot = !self.queue.is_active(spec.parent_question);
        let stage = match &state {
            StoredState::Waiting => RunStage::Waiting,
            StoredState::Supervised(_) => RunStage::Starting { slot },
            // At most processes that are about to be killed.
            StoredState::Lost => RunStage::Starting { slot: false },
            StoredState::Ended(end) => RunStage::Ended(end.clone()),
        };
        let entry = QueuedRun {
            sequence: spec.sequence,
            launched: Timestamp(spec.launched),
            service: spec.recipient.into(),
            parent_question: spec.parent_question,
            attributes: Arc::new(spec.attributes),
            stage,
        };
        self.queue.insert(run, entry);

        let task = self.run_task(run);
        match state {
            StoredState::Waiting | StoredState::Ended(_) => {}
            StoredState::Supervised(life) => {
                let adopt = async move { TaskOutcome::Ended { run, end: task.adopt(life).await } };
                self.tasks.spawn(adopt);
            }
            StoredState::Lost => {
                let end_lost =
                    async move { TaskOutcome::Ended { run, end: task.end_lost().await } };
                self.tasks.spawn(end_lost);
            }
        }
    }

    fn cancel(&mut self, question: Uuid, reply: Reply<bool>) {
        let creation = self.creations.iter_mut().find(|(run, _)| run.question == question);
        if let Some((_, creation)) = creation {
            creation.cancels.push(reply);
            return;
        }
        let runs: Vec<(RunId, QueuedRun)> = self
            .queue
            .runs_of(question)
            .filter(|(_, entry)| !matches!(entry.stage, RunStage::Ended(_)))
            .map(|(run, entry)| (run, entry.clone()))
            .collect();
        if runs.is_empty() {
            answer(reply, Ok(false));
            return;
        }
        let mut cancels = Vec::new();
        for (run, entry) in runs {
            let waited = self.queue.withdraw(run);
            cancels.push((run, self.folder(run), entry.service, waited));
        }
        self.tasks.spawn(blocking(move || {
            let runs = cancels
                .into_iter()
                .map(|(run, folder, service, waited)| (run, cancel(&folder, &service, waited)))
                .collect();
            TaskOutcome::Cancelled { question, runs, reply }
        }));
    }

    fn cancelled(
        &mut self,
        question: Uuid,
        runs: Vec<(RunId, io::Result<Option<RunEnd>>)>,
        reply: Reply<bool>,
    ) {
        let mut result = Ok(true);
        for (run, ended) in runs {
            match ended {
                Ok(Some(end)) => self.ended(run, end),
                // Its task returns its end.
                Ok(None) => {}
                Err(err) => {
                    self.queue.reinstate(run);
                    result = Err(unavailable("cancel", question, Box::new(err)));
                }
            }
        }
        answer(reply, result);
    }

    fn settle(&mut self, run: RunId, reply: Reply<Settlement>) {
        if !matches!(self.queue.get(run), Some(QueuedRun { stage: RunStage::Ended(_), .. })) {
            answer(reply, Ok(Settlement::Theirs));
            return;
        }
        let (folder, logs) = (self.folder(run), self.context.options.logs.clone());
        self.tasks.spawn(blocking(move || {
            if let Err(err) = retain(&logs, run, &folder) {
                // The folder is removed nevertheless: keeping it would not empty a full disk.
                warn!(%run, error = %Chain(&err), "failed to retain output of run");
            }
            TaskOutcome::Settled { run, result: folder.remove(), reply }
        }));
    }

    fn settled(&mut self, run: RunId, result: io::Result<()>, reply: Reply<Settlement>) {
        let result = result.map_err(|err| unavailable("settle", run.question, Box::new(err)));
        if result.is_ok() {
            self.queue.remove(run);
            self.listeners.forget(run);
        }
        answer(reply, result.map(|()| Settlement::Ours));
    }

    fn interrupt(&mut self, reply: oneshot::Sender<()>) {
        self.queue.pause();
        let runs: Vec<RunId> = self.queue.active().collect();
        if runs.is_empty() {
            let _ = reply.send(());
            return;
        }
        self.interrupts.push(reply);
        let folders: Vec<RunFolder> = runs.into_iter().map(|run| self.folder(run)).collect();
        self.tasks.spawn(blocking(move || {
            for folder in folders {
                if let Err(err) = folder.request_stop(StopRequest::Interrupt) {
                    let folder = folder.path().display();
                    warn!(%folder, error = %Chain(&err), "failed to interrupt run");
                }
            }
            TaskOutcome::Interrupted
        }));
    }

    fn is_idle(&self) -> bool {
        let mut states = self.queue.states();
        self.creations.is_empty()
            && states.all(|state| matches!(state.phase, RunPhase::Queued { .. }))
    }

    fn ended(&mut self, run: RunId, end: RunEnd) {
        self.queue.ended(run, end);
        self.publish(run);
    }

    fn publish(&mut self, run: RunId) {
        if let Some(state) = self.queue.state(run) {
            self.listeners.notify(&state);
        }
    }

    fn folder(&self, run: RunId) -> RunFolder {
        RunFolder::new(&self.context.options.runs, run)
    }

    fn run_task(&self, run: RunId) -> RunTask {
        let entry = self.queue.get(run).expect("a run with a task is in the queue");
        RunTask {
            context: Arc::clone(&self.context),
            run,
            service: Arc::clone(&entry.service),
            starts: self.starts_sender.clone(),
        }
    }
}

/// Cancels a run. Returns its end if it `waited`; otherwise its task returns it. Blocks.
fn cancel(folder: &RunFolder, service: &str, waited: bool) -> io::Result<Option<RunEnd>> {
    if waited {
        folder.record_end(&EndRecord::stopped_before_start(StopRequest::Cancel))?;
        recorded_end(folder, service)
    } else {
        folder.request_stop(StopRequest::Cancel)?;
        Ok(None)
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, RunnerError>) {
    // A caller that has given up dropped the receiver.
    let _ = reply.send(result);
}

fn unavailable(
    verb: &'static str,
    question: Uuid,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> RunnerError {
    RunnerError::Unavailable { verb, question, source }
}

fn not_found(run: RunId, recipient: &str) -> RunnerError {
    RunnerError::Refused {
        question: run.question,
        exception: "ServiceNotFound",
        message: format!(
            "`{recipient}` is not a service of this network; add the service's folder to the network, \
             or ask one of its services"
        ),
    }
}
