//! The baseline of the daemon: creates Jobs as fast as the API server accepts them.
//!
//! `creates JOB.json COUNT CONCURRENCY` creates COUNT copies of a Job in its namespace, with
//! CONCURRENCY calls at the same time, with the daemon's client. It prints one line of JSON: Jobs a
//! second, and the duration of the calls.

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

/// The uuid in the given Job that is replaced by that of a question.
const QUESTION: &str = "00000000-0000-4000-8000-000000000000";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, file, count, concurrency] = &arguments[..] else {
        return Err("usage: creates JOB.json COUNT CONCURRENCY".into());
    };
    let (count, concurrency): (usize, usize) = (count.parse()?, concurrency.parse()?);
    let text = std::fs::read_to_string(file)?;
    let job: Job = serde_json::from_str(&text)?;
    let namespace = job.metadata.namespace.ok_or("the Job has no namespace")?;
    let client = KubernetesRunner::client().await?;
    let jobs: Api<Job> = Api::namespaced(client.clone(), &namespace);
    let bodies: Vec<_> =
        (0..count).map(|_| text.replace(QUESTION, &Uuid::new_v4().to_string())).collect();

    let start = Instant::now();
    let mut durations: Vec<Duration> = futures_util::stream::iter(bodies)
        .map(|body| {
            let request = Request::new(jobs.resource_url());
            let request = request.create(&PostParams::default(), body.into_bytes());
            let client = client.clone();
            async move {
                let start = Instant::now();
                client
                    .request::<Job>(request.expect("the request is valid"))
                    .await
                    .map(|_| start.elapsed())
            }
        })
        .buffer_unordered(concurrency)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<_, _>>()?;
    let all = start.elapsed();

    durations.sort();
    let at =
        |fraction: f64| durations[((count - 1) as f64 * fraction) as usize].as_secs_f64() * 1e3;
    let line = json!({
        "a_second": count as f64 / all.as_secs_f64(),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
    });
    #[expect(clippy::print_stdout, reason = "it reports by its output")]
    {
        println!("{line}");
    }
    Ok(())
}
