//! The bare loop that the daemon is measured against: Jobs made as fast as an API server takes them.
//!
//! `creates JOB.json COUNT AT_ONCE` makes so many Jobs like the given one, in its namespace, with so
//! many calls at once, by the client that the daemon has. It prints one line of JSON: how many a
//! second, and how long the calls took.

use futures_util::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use kube::api::PostParams;
use kube::core::Request;
use serde_json::json;
use std::error::Error;
use std::time::Duration;
use tokio::time::Instant;
use twined::runner::kubernetes::KubernetesRunner;
use uuid::Uuid;

/// What stands in the given Job where the uuid of a question is to be.
const QUESTION: &str = "00000000-0000-4000-8000-000000000000";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, file, count, at_once] = &arguments[..] else {
        return Err("usage: creates JOB.json COUNT AT_ONCE".into());
    };
    let (count, at_once): (usize, usize) = (count.parse()?, at_once.parse()?);
    let text = std::fs::read_to_string(file)?;
    let job: Job = serde_json::from_str(&text)?;
    let namespace = job.metadata.namespace.ok_or("the Job names no namespace")?;
    let client = KubernetesRunner::client().await?;
    let jobs: Api<Job> = Api::namespaced(client.clone(), &namespace);
    let bodies: Vec<_> =
        (0..count).map(|_| text.replace(QUESTION, &Uuid::new_v4().to_string())).collect();

    let start = Instant::now();
    let mut took: Vec<Duration> = futures_util::stream::iter(bodies)
        .map(|body| {
            let request = Request::new(jobs.resource_url());
            let request = request.create(&PostParams::default(), body.into_bytes());
            let client = client.clone();
            async move {
                let start = Instant::now();
                client.request::<Job>(request.expect("a request")).await.map(|_| start.elapsed())
            }
        })
        .buffer_unordered(at_once)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<_, _>>()?;
    let all = start.elapsed();

    took.sort();
    let at = |share: f64| took[((count - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let line = json!({
        "a_second": count as f64 / all.as_secs_f64(),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
    });
    #[expect(clippy::print_stdout, reason = "a program's answer")]
    {
        println!("{line}");
    }
    Ok(())
}
