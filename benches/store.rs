//! How many events a second the SQLite store makes durable, one row a call, with many concurrent
//! callers: `cargo bench --bench store -- [EVENTS] [CALLERS] [FOLDER] [ROWS]`.
//!
//! With ROWS, the store has that many rows before the measurement: the indexes of a large store no
//! longer fit into its cache.
//!
//! This is a program and not a sampled loop, because it measures a disk, whose speed changes from
//! minute to minute. So it also prints how long a sync of that disk takes.
#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use twined::event::{OutgoingMessage, RunId, Sruid, Timestamp, decode, encode};
use twined::store::sqlite::{Options, SqliteStore};
use twined::store::{EventLog, EventQuery, EventScope, History, Row, View};
use uuid::Uuid;

/// The size of the data of each event, without its attributes.
const DATA_BYTES: usize = 750;
/// The number of events of a question.
const EVENTS_OF_QUESTION: u64 = 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds flags of its own.
    let given: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let number =
        |index: usize, default: u64| given.get(index).map_or(Ok(default), |text| text.parse());
    let (events, callers, rows) = (number(0, 100_000)?, number(1, 500)?, number(3, 0)?);
    let folder = match given.get(2) {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };

    syncs(folder.path())?;
    let path = folder.path().join("events.sqlite");
    opening(&path).await?;
    let store = SqliteStore::open(&path, Options::default())?;
    fill(&store, events, rows).await?;
    append(&store, events, callers).await?;
    read(&store).await?;
    store.close().await;
    let bytes = std::fs::metadata(&path)?.len();
    println!("file                {:.0} bytes an event", bytes as f64 / (events + rows) as f64);
    Ok(())
}

/// Measures a sync of 64 KiB on this disk.
fn syncs(folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut file = File::create(folder.join("sync"))?;
    let mut took = Vec::new();
    for _ in 0..100 {
        file.write_all(&[1; 64 << 10])?;
        let start = Instant::now();
        file.sync_data()?;
        took.push(start.elapsed());
    }
    println!("sync of 64 KiB      {}", quantiles(&mut took));
    Ok(())
}

async fn opening(path: &Path) -> Result<(), Box<dyn Error>> {
    let (mut new, mut again) = (Vec::new(), Vec::new());
    for round in 0..20 {
        let path = PathBuf::from(format!("{}.{round}", path.display()));
        for took in [&mut new, &mut again] {
            let start = Instant::now();
            let store = SqliteStore::open(&path, Options::default())?;
            took.push(start.elapsed());
            store.close().await;
        }
    }
    println!("open a new file     {}", quantiles(&mut new));
    println!("open it again       {}", quantiles(&mut again));
    Ok(())
}

/// Appends the rows that exist before the measurement.
async fn fill(store: &SqliteStore, first: u64, rows: u64) -> Result<(), Box<dyn Error>> {
    for start in (first..first + rows).step_by(1_000) {
        let numbers = start..(start + 1_000).min(first + rows);
        let messages: Vec<_> = numbers.map(message).collect();
        let events = messages.iter().map(|message| decode(&message.data, &message.attributes));
        let events = events.collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<_> = messages
            .iter()
            .zip(&events)
            .map(|(message, event)| {
                Row::new(event, &message.attributes, "17", &message.ordering_key)
            })
            .collect();
        store.append(&rows).await?;
    }
    Ok(())
}

async fn append(store: &SqliteStore, events: u64, callers: u64) -> Result<(), Box<dyn Error>> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for _ in 0..callers {
        let (store, next) = (store.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            let mut took = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= events {
                    return took;
                }
                let message = message(number);
                let event = decode(&message.data, &message.attributes).expect("ours decode");
                let message_id = (17_000_000_000_000_000 + number).to_string();
                let row = Row::new(&event, &message.attributes, &message_id, &message.ordering_key);
                let start = Instant::now();
                store.append(&[row]).await.expect("the disk is well");
                took.push(start.elapsed());
            }
        });
    }
    let mut took: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    let rate = events as f64 / start.elapsed().as_secs_f64();
    println!("append              {rate:.0} events/s, {callers} callers");
    println!("append, one event   {}", quantiles(&mut took));
    Ok(())
}

async fn read(store: &SqliteStore) -> Result<(), Box<dyn Error>> {
    let (mut records, mut reads) = (Vec::new(), Vec::new());
    for number in 0..200 {
        let question = question(number * EVENTS_OF_QUESTION);
        let start = Instant::now();
        View::run_record(store, RunId { question, retry: 0 }).await?;
        records.push(start.elapsed());
        let start = Instant::now();
        let query =
            EventQuery { tail: true, ..EventQuery::new(EventScope::Question(question), 1000) };
        let found = store.events(&query).await?;
        reads.push(start.elapsed());
        assert!(!found.is_empty(), "each question has events");
    }
    println!("record of a run     {}", quantiles(&mut records));
    println!("read {EVENTS_OF_QUESTION} events      {}", quantiles(&mut reads));
    Ok(())
}

fn question(number: u64) -> Uuid {
    // Spread over the index, like random ones.
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &(number / EVENTS_OF_QUESTION).to_be_bytes())
}

/// A question to one of two services, or one of the monitor messages that follow it.
fn message(number: u64) -> OutgoingMessage {
    let child = ["octue/wind-speed:1.2.0", "octue/elevation:0.4.1"]
        [(number / EVENTS_OF_QUESTION) as usize % 2];
    let ask = encode::NewQuestion {
        question_uuid: question(number),
        sender: Sruid::parse("local/local:local").expect("an SRUID"),
        recipient: Sruid::parse(child).expect("an SRUID"),
        datetime: Timestamp(1_712_832_408_236_064 + number as i64),
        forward_logs: true,
        input_values: None,
        input_manifest: None,
    };
    if number.is_multiple_of(EVENTS_OF_QUESTION) {
        return ask.encode();
    }
    let datetime = Timestamp(1_712_832_408_236_064 + number as i64);
    let text = format!("{number:0width$}", width = DATA_BYTES - 40);
    let body = encode::EventBody::MonitorMessage { data: text.into() };
    let asked: HashMap<String, String> = ask.encode().attributes;
    encode::response(&asked, Uuid::new_v4(), datetime, &body).expect("it names everybody")
}

fn quantiles(took: &mut [Duration]) -> String {
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 100].as_secs_f64() * 1000.0;
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(50), at(99), at(100))
}
