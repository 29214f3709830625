//! The state of a run, as its folder shows it.

use crate::runner::RunEnd;
use crate::runner::process::end_cause::run_end;
use crate::runner::process::output_tail::output_tail;
use crate::runner::process::records::EndRecord;
use crate::runner::process::run_folder::{RunFolder, SupervisorState};
use std::fs::File;
use std::io;

/// The state of a run as a runner finds it when it starts.
#[derive(Debug)]
pub(super) enum StoredState {
    /// Its child has not been started.
    Waiting,
    /// A supervisor runs; its end is the end of this FIFO.
    Supervised(File),
    /// Its child had been started, and there is neither a supervisor nor a record of its end.
    Lost,
    /// It has ended.
    Ended(RunEnd),
}

// === impl StoredState ===

impl StoredState {
    /// Reads the state of a run; ends one that was stopped before it started. Blocks.
    pub(super) fn read(folder: &RunFolder, service: &str) -> io::Result<Self> {
        // The supervisor first: one that ends in the meantime has recorded the end.
        let supervisor = folder.supervisor_state()?;
        if let Some(end) = recorded_end(folder, service)? {
            return Ok(Self::Ended(end));
        }
        if let SupervisorState::Alive(life) = supervisor {
            return Ok(Self::Supervised(life));
        }
        if folder.started_at()?.is_some() {
            return Ok(Self::Lost);
        }
        match folder.stop_request()? {
            Some(request) => {
                let record = EndRecord::stopped_before_start(request);
                folder.record_end(&record)?;
                Ok(Self::Ended(end_with_output(folder, service, &record)))
            }
            None => Ok(Self::Waiting),
        }
    }
}

/// How a run ended; none if there is no record of it. Blocks.
pub(super) fn recorded_end(folder: &RunFolder, service: &str) -> io::Result<Option<RunEnd>> {
    Ok(folder.end_record()?.map(|record| end_with_output(folder, service, &record)))
}

/// How a run ended, with the last lines of its output. Blocks.
pub(super) fn end_with_output(folder: &RunFolder, service: &str, record: &EndRecord) -> RunEnd {
    let (newer, older) = folder.outputs();
    let started = folder.started_at().ok().flatten();
    run_end(service, record, started, output_tail(&newer, &older))
}
