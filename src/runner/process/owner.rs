//! The one task that owns the state of all runs.
//!
//! It decides and never waits: whatever takes time is a task of its own, and tells its outcome.

use crate::chain::Chain;
use crate::event::{RunId, Timestamp};
use crate::runner::process::attend::{Attendance, Context, Standing, blocking, end};
use crate::runner::process::folder::Folder;
use crate::runner::process::kept;
use crate::runner::process::queue::{Entry, Queue, Stage};
use crate::runner::process::record::{Asked, Ending, Order};
use crate::runner::states::{Listeners, Mailbox};
use crate::runner::{RunEnd, RunPhase, RunnerError};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::warn;
use uuid::Uuid;

/// Where an answer goes. Whoever asked may be gone.
pub type Reply<T> = oneshot::Sender<Result<T, RunnerError>>;

/// What the owner is told to do.
#[derive(Debug)]
pub enum Command {
    /// Makes sure that a run exists.
    Launch(Box<Draft>, Reply<()>),
    /// Ends the runs of a question.
    Cancel(Uuid, Reply<bool>),
    /// Forgets a run.
    Settle(RunId, Reply<()>),
    /// Tells what is and what changes.
    Listen(Arc<Mailbox>),
    /// Starts nothing more, and ends all that runs.
    Interrupt(oneshot::Sender<()>),
    /// Tells when nothing runs, and all that has ended is settled.
    Idle(oneshot::Sender<()>),
    /// Lets all go on without us.
    Stop,
}

/// A run that is to be made.
#[derive(Debug)]
pub struct Draft {
    /// Names it.
    pub run: RunId,
    /// What is to be run; its place in the order is given by the owner.
    pub asked: Asked,
    /// The question's inputs, for the file.
    pub question: Vec<u8>,
}

/// A run that was found when we started.
#[derive(Debug)]
pub struct Found {
    /// Names it.
    pub run: RunId,
    /// What is to be run.
    pub asked: Asked,
    /// How far it is.
    pub standing: Standing,
}

/// The owner.
#[derive(Debug)]
pub struct Owner {
    context: Arc<Context>,
    queue: Queue,
    listeners: Listeners,
    sequence: u64,
    making: HashMap<RunId, Making>,
    work: JoinSet<Done>,
    notes: UnboundedSender<(RunId, Timestamp)>,
    noted: UnboundedReceiver<(RunId, Timestamp)>,
    interrupts: Vec<oneshot::Sender<()>>,
    idlers: Vec<oneshot::Sender<()>>,
}

/// Who waits for a folder that is being made.
#[derive(Debug, Default)]
struct Making {
    launches: Vec<Reply<()>>,
    cancels: Vec<Reply<bool>>,
}

/// What a task has done.
#[derive(Debug)]
enum Done {
    Made { run: RunId, asked: Box<Asked>, result: io::Result<Option<Standing>> },
    Ended { run: RunId, end: RunEnd },
    Stopped { question: Uuid, runs: Vec<(RunId, io::Result<Option<RunEnd>>)>, reply: Reply<bool> },
    Interrupted,
    Settled { run: RunId, result: io::Result<()>, reply: Reply<()> },
}

// === impl Owner ===

impl Owner {
    /// Takes in what was found, which is in the order of its launches.
    pub fn new(context: Arc<Context>, found: Vec<Found>) -> Self {
        let (notes, noted) = unbounded_channel();
        let mut owner = Self {
            queue: Queue::new(context.options.max_runs),
            context,
            listeners: Listeners::default(),
            sequence: found.last().map_or(0, |found| found.asked.sequence + 1),
            making: HashMap::new(),
            work: JoinSet::new(),
            notes,
            noted,
            interrupts: Vec::new(),
            idlers: Vec::new(),
        };
        for Found { run, asked, standing } in found {
            owner.take_in(run, asked, standing);
        }
        owner
    }

    /// Works until it is told to stop, or nobody is left who could tell it anything.
    pub async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        loop {
            self.start_due();
            if !self.idlers.is_empty() && self.is_idle() {
                for reply in self.idlers.drain(..) {
                    let _ = reply.send(());
                }
            }
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => return,
                    Some(command) => self.obey(command),
                },
                Some((run, since)) = self.noted.recv() => {
                    if self.queue.started(run, since) {
                        self.tell(run);
                    }
                }
                Some(done) = self.work.join_next() => match done {
                    Ok(done) => self.note(done),
                    // A run without anybody to attend to it must not look as if it had.
                    Err(err) => match err.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => return,
                    },
                },
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Launch(draft, reply) => self.launch(*draft, reply),
            Command::Cancel(question, reply) => self.cancel(question, reply),
            Command::Settle(run, reply) => self.settle(run, reply),
            Command::Listen(mailbox) => self.listeners.add(&mailbox, self.queue.states()),
            Command::Interrupt(reply) => self.interrupt(reply),
            Command::Idle(reply) => self.idlers.push(reply),
            Command::Stop => {}
        }
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Made { run, asked, result } => self.made(run, *asked, result),
            Done::Ended { run, end } => self.ended(run, end),
            Done::Stopped { question, runs, reply } => self.stopped(question, runs, reply),
            Done::Settled { run, result, reply } => self.settled(run, result, reply),
            Done::Interrupted => {}
        }
        if self.queue.active().next().is_none() {
            for reply in self.interrupts.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    fn start_due(&mut self) {
        while let Some(run) = self.queue.start_next() {
            let attendance = self.attendance(run);
            self.work.spawn(async move { Done::Ended { run, end: attendance.start().await } });
        }
    }

    fn launch(&mut self, Draft { run, mut asked, question }: Draft, reply: Reply<()>) {
        if self.queue.get(run).is_some() {
            answer(reply, Ok(()));
            return;
        }
        if let Some(making) = self.making.get_mut(&run) {
            making.launches.push(reply);
            return;
        }
        if !self.context.services.contains_key(&asked.recipient) {
            answer(reply, Err(not_found(run, &asked.recipient)));
            return;
        }
        asked.sequence = self.sequence;
        self.sequence += 1;
        self.making.insert(run, Making { launches: vec![reply], ..Making::default() });

        let folder = self.folder(run);
        let service = Arc::from(&*asked.recipient);
        self.work.spawn(async move {
            let act = move || {
                let result = match folder.make(&asked, &question) {
                    Ok(true) => Ok(Some(Standing::Waiting)),
                    // Somebody put it there while we ran.
                    Ok(false) => folder.asked().and_then(|found| {
                        asked = found;
                        Standing::of(&folder, &service).map(Some)
                    }),
                    Err(err) => Err(err),
                };
                Done::Made { run, asked: Box::new(asked), result }
            };
            blocking(act).await
        });
    }

    fn made(&mut self, run: RunId, asked: Asked, result: io::Result<Option<Standing>>) {
        let Making { launches, cancels } = self.making.remove(&run).unwrap_or_default();
        match result {
            Ok(standing) => {
                if let Some(standing) = standing {
                    self.take_in(run, asked, standing);
                    self.tell(run);
                }
                launches.into_iter().for_each(|reply| answer(reply, Ok(())));
            }
            Err(err) => {
                // One source for many: as text.
                let text = Chain(&err).to_string();
                for reply in launches {
                    answer(reply, Err(unavailable("launch", run.question, text.clone().into())));
                }
            }
        }
        cancels.into_iter().for_each(|reply| self.cancel(run.question, reply));
    }

    /// Takes in a run that is on disk.
    fn take_in(&mut self, run: RunId, asked: Asked, standing: Standing) {
        let slot = !self.queue.is_active(asked.parent_question);
        let stage = match &standing {
            Standing::Waiting => Stage::Waiting,
            Standing::Held(_) => Stage::Starting { slot },
            // Nothing of it runs, but for what is about to be killed.
            Standing::Lost => Stage::Starting { slot: false },
            Standing::Ended(end) => Stage::Ended(end.clone()),
        };
        let entry = Entry {
            sequence: asked.sequence,
            launched: Timestamp(asked.launched),
            service: asked.recipient.into(),
            parent_question: asked.parent_question,
            attributes: Arc::new(asked.attributes),
            stage,
        };
        self.queue.insert(run, entry);

        let attendance = self.attendance(run);
        match standing {
            Standing::Waiting | Standing::Ended(_) => {}
            Standing::Held(life) => {
                let adopt = async move { Done::Ended { run, end: attendance.adopt(life).await } };
                self.work.spawn(adopt);
            }
            Standing::Lost => {
                let find = async move { Done::Ended { run, end: attendance.find_lost().await } };
                self.work.spawn(find);
            }
        }
    }

    fn cancel(&mut self, question: Uuid, reply: Reply<bool>) {
        let making = self.making.iter_mut().find(|(run, _)| run.question == question);
        if let Some((_, making)) = making {
            making.cancels.push(reply);
            return;
        }
        let runs: Vec<(RunId, Entry)> = self
            .queue
            .runs_of(question)
            .filter(|(_, entry)| !matches!(entry.stage, Stage::Ended(_)))
            .map(|(run, entry)| (run, entry.clone()))
            .collect();
        if runs.is_empty() {
            answer(reply, Ok(false));
            return;
        }
        let mut orders = Vec::new();
        for (run, entry) in runs {
            let waited = self.queue.withdraw(run);
            orders.push((run, self.folder(run), entry.service, waited));
        }
        self.work.spawn(blocking(move || {
            let stop = |(run, folder, service, waited): (RunId, Folder, Arc<str>, bool)| {
                let order = if waited {
                    folder.end(&Ending::ordered(Order::Cancel))
                } else {
                    folder.stop(Order::Cancel)
                };
                let ended =
                    order.and_then(|()| if waited { end(&folder, &service) } else { Ok(None) });
                (run, ended)
            };
            let runs = orders.into_iter().map(stop).collect();
            Done::Stopped { question, runs, reply }
        }));
    }

    fn stopped(
        &mut self,
        question: Uuid,
        runs: Vec<(RunId, io::Result<Option<RunEnd>>)>,
        reply: Reply<bool>,
    ) {
        let mut result = Ok(true);
        for (run, ended) in runs {
            match ended {
                Ok(Some(end)) => self.ended(run, end),
                // Whoever attends to it tells when it has ended.
                Ok(None) => {}
                Err(err) => {
                    self.queue.reinstate(run);
                    result = Err(unavailable("cancel", question, Box::new(err)));
                }
            }
        }
        answer(reply, result);
    }

    fn settle(&mut self, run: RunId, reply: Reply<()>) {
        if !matches!(self.queue.get(run), Some(Entry { stage: Stage::Ended(_), .. })) {
            answer(reply, Ok(()));
            return;
        }
        let (folder, logs) = (self.folder(run), self.context.options.logs.clone());
        self.work.spawn(blocking(move || {
            if let Err(err) = kept::keep(&logs, run, &folder) {
                // A full disk gets no emptier if the folder stays.
                warn!(%run, error = %Chain(&err), "failed to keep output");
            }
            Done::Settled { run, result: folder.remove(), reply }
        }));
    }

    fn settled(&mut self, run: RunId, result: io::Result<()>, reply: Reply<()>) {
        let result = result.map_err(|err| unavailable("settle", run.question, Box::new(err)));
        if result.is_ok() {
            self.queue.remove(run);
            self.listeners.forget(run);
        }
        answer(reply, result);
    }

    fn interrupt(&mut self, reply: oneshot::Sender<()>) {
        self.queue.pause();
        let runs: Vec<RunId> = self.queue.active().collect();
        if runs.is_empty() {
            let _ = reply.send(());
            return;
        }
        self.interrupts.push(reply);
        let folders: Vec<Folder> = runs.into_iter().map(|run| self.folder(run)).collect();
        self.work.spawn(blocking(move || {
            for folder in folders {
                if let Err(err) = folder.stop(Order::Interrupt) {
                    let folder = folder.path().display();
                    warn!(%folder, error = %Chain(&err), "failed to interrupt run");
                }
            }
            Done::Interrupted
        }));
    }

    fn is_idle(&self) -> bool {
        let mut states = self.queue.states();
        self.making.is_empty() && states.all(|state| matches!(state.phase, RunPhase::Queued { .. }))
    }

    fn ended(&mut self, run: RunId, end: RunEnd) {
        self.queue.ended(run, end);
        self.tell(run);
    }

    fn tell(&mut self, run: RunId) {
        if let Some(state) = self.queue.state(run) {
            self.listeners.notify(&state);
        }
    }

    fn folder(&self, run: RunId) -> Folder {
        Folder::of(&self.context.options.runs, run)
    }

    fn attendance(&self, run: RunId) -> Attendance {
        let entry = self.queue.get(run).expect("what is attended to is in the queue");
        Attendance {
            context: Arc::clone(&self.context),
            run,
            service: Arc::clone(&entry.service),
            notes: self.notes.clone(),
        }
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, RunnerError>) {
    // Whoever asked may have given up; what was asked is done.
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
            "`{recipient}` is no service of this network; give it the service's folder, or ask one \
             of those that it has"
        ),
    }
}
