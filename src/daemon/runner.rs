//! The runner of a daemon, of either kind.

use super::DaemonError;
use crate::runner::kubernetes::{KubernetesOptions, KubernetesRunner, KubernetesStartError};
use crate::runner::process::{self, ProcessRunner, ProcessService};
use crate::runner::{Coordinator, Runner};
use crate::sdk::ASK_LOCAL;
use crate::sdk::services::LocalService;
use crate::tasks::Tasks;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

/// What runs questions.
#[derive(Clone, Debug)]
pub(crate) enum DaemonRunner {
    /// Runs each as a Kubernetes Job.
    Kubernetes(Arc<KubernetesRunner>),
    /// Runs each as a process of this host.
    Process(Arc<ProcessRunner>),
}

/// What this host gives to questions that run as processes.
#[derive(Debug)]
pub(crate) struct ProcessHost {
    /// The services, with the command of each.
    pub(crate) services: Vec<ProcessService>,
    /// Our own environment, of which processes get the variables that every process needs.
    pub(crate) inherited: Vec<(OsString, OsString)>,
    /// Our own program.
    pub(crate) program: PathBuf,
}

/// How questions run as processes.
#[derive(Debug)]
pub(crate) struct ProcessSettings {
    /// Folder of the runs.
    pub(crate) runs: PathBuf,
    /// Folder of the runs' output.
    pub(crate) logs: PathBuf,
    /// Number of questions that may run at a time.
    pub(crate) max_runs: usize,
    /// Variables of the network.
    pub(crate) environment: Vec<(String, String)>,
    /// Variables that the user gives.
    pub(crate) passed: Vec<(String, String)>,
    /// Folder of the shim.
    pub(crate) shim: Option<PathBuf>,
}

// === impl DaemonRunner ===

impl DaemonRunner {
    /// Starts a runner of Kubernetes Jobs, with its tasks among those of the daemon.
    pub(crate) async fn kubernetes(
        tasks: &mut Tasks,
        options: KubernetesOptions,
    ) -> Result<Self, DaemonError> {
        let failed = |error: KubernetesStartError| DaemonError::Runner(error.into());
        let client = KubernetesRunner::client().await.map_err(failed)?;
        let runner = KubernetesRunner::start(options, client, tasks).await.map_err(failed)?;
        Ok(Self::Kubernetes(Arc::new(runner)))
    }

    /// Starts a runner of processes.
    pub(crate) async fn process(
        settings: ProcessSettings,
        host: ProcessHost,
    ) -> Result<Self, DaemonError> {
        let ProcessSettings { runs, logs, max_runs, environment, passed, shim } = settings;
        let ProcessHost { services, inherited, program } = host;
        let options = process::ProcessRunnerOptions {
            runs,
            logs,
            max_runs,
            supervisor: program,
            inherited,
            environment,
            passed,
            shim,
        };
        let runner = ProcessRunner::start(options, services).await;
        let runner = runner.map_err(|error| DaemonError::Runner(error.into()))?;
        Ok(Self::Process(Arc::new(runner)))
    }

    pub(super) fn runner(&self) -> Arc<dyn Runner> {
        match self {
            Self::Kubernetes(runner) => Arc::clone(runner) as Arc<dyn Runner>,
            Self::Process(runner) => Arc::clone(runner) as Arc<dyn Runner>,
        }
    }

    pub(super) fn coordinator(&self) -> Arc<dyn Coordinator> {
        match self {
            Self::Kubernetes(runner) => Arc::clone(runner) as Arc<dyn Coordinator>,
            Self::Process(runner) => Arc::clone(runner) as Arc<dyn Coordinator>,
        }
    }

    /// Ends the runs of this host. Jobs outlive the daemon.
    pub(super) async fn interrupt(&self) {
        match self {
            Self::Kubernetes(_) => {}
            Self::Process(runner) => runner.interrupt().await,
        }
    }

    /// Returns when no process runs and every run that has ended is settled.
    pub(crate) async fn idle(&self) {
        match self {
            Self::Kubernetes(_) => {}
            Self::Process(runner) => runner.wait_until_idle().await,
        }
    }

    /// Stops the runner. Its runs go on.
    pub(super) async fn stop(&self) {
        match self {
            // Its tasks are those of the daemon.
            Self::Kubernetes(_) => {}
            Self::Process(runner) => runner.stop().await,
        }
    }
}

/// A service of the SDK in a folder, as the process runner runs it.
pub(crate) fn sdk_service(found: LocalService) -> ProcessService {
    let LocalService { sruid, folder } = found;
    ProcessService { sruid, folder, command: ASK_LOCAL.map(OsString::from).into() }
}
