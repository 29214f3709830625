//! Checks a cluster before the daemon works in it: what exists, and what the daemon may do.
//!
//! The checks change nothing: rights are asked for by reviews, and the one Job is a dry run. Each
//! check that fails has a remedy, in commands that can be copied.

mod rights;

use crate::chain::Chain;
use crate::event::attributes::{ORIGINATOR, ORIGINATOR_QUESTION_UUID, PARENT};
use crate::event::{Inputs, RunId, SruidBuf, Timestamp};
use crate::preflight::{PreflightCheck, Verdict};
use crate::runner::LaunchRequest;
use crate::runner::kubernetes::job::{self, Gate, JobDefaults, JobRequest};
use crate::runner::kubernetes::refusal::LaunchRefusal;
use crate::runner::kubernetes::settings::NetworkSettings;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Api, Client, Config};
use rights::ApiUser;
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// The longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The oldest minor version of Kubernetes 1 in which `podFailurePolicy`, by which a Job
/// distinguishes an eviction from a failure, is enabled by default.
const OLDEST_MINOR: u32 = 26;

/// The API group of Kueue.
const KUEUE: &str = "kueue.x-k8s.io";

/// The annotation of a service account that names its account of Google.
const GOOGLE_ACCOUNT: &str = "iam.gke.io/gcp-service-account";

/// What the daemon needs of a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClusterRequirements<'a> {
    /// What all Jobs have in common, the namespace included.
    pub network: &'a JobDefaults,
    /// The settings of the services.
    pub settings: &'a NetworkSettings,
    /// The service account of questions.
    pub service_account: &'a str,
    /// The local queue in which questions wait.
    pub queue: Option<&'a str>,
    /// Whether the daemon runs the checks, as whatever user: the rights of a person are not those
    /// of the daemon.
    pub is_daemon: bool,
}

/// The results of the checks of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterFindings {
    /// All checks.
    pub checks: Vec<PreflightCheck>,
    /// The account of Google that questions run as, if it is known.
    pub google_account: Option<String>,
}

/// Checks the cluster that the process is configured for.
pub(crate) async fn check_cluster(required: ClusterRequirements<'_>) -> ClusterFindings {
    let mut findings = ClusterFindings { checks: Vec::new(), google_account: None };
    let client = match client().await {
        Ok(client) => client,
        Err(check) => {
            findings.checks.push(check);
            return findings;
        }
    };
    let version = version(&client).await;
    let reached = version.verdict != Verdict::Fail;
    findings.checks.push(version);
    if !reached {
        return findings;
    }
    let user = api_user(&client, required.is_daemon).await;
    findings.checks.push(user.identity().check("Kubernetes"));
    let kueue = kueue_version(&client).await;
    let served = matches!(kueue, Ok(Some(_)));
    let (namespace, rights, (account, google), queue) = tokio::join!(
        namespace(&client, required),
        rights::checks(&client, &required.network.namespace, &user, served),
        account(&client, required),
        queue(&client, required, kueue),
    );
    findings.checks.push(namespace);
    findings.checks.extend(rights);
    findings.checks.push(account);
    findings.checks.push(queue);
    findings.google_account = google;
    findings
}

async fn client() -> Result<Client, PreflightCheck> {
    let remedy = "set KUBECONFIG to the file of a cluster's access, or run in a pod whose service \
                  account token is mounted";
    let fail = |found: String| PreflightCheck::fail("kubernetes", found, remedy);
    let mut config = Config::infer().await.map_err(|error| fail(Chain(&error).to_string()))?;
    config.connect_timeout = Some(TIMEOUT);
    config.read_timeout = Some(TIMEOUT);
    Client::try_from(config).map_err(|error| fail(message(&error)))
}

async fn version(client: &Client) -> PreflightCheck {
    match client.apiserver_version().await {
        Ok(info) => judge_version(&info.git_version, &info.minor),
        Err(error) => PreflightCheck::fail(
            "kubernetes",
            format!("the API server does not answer: {}", message(&error)),
            "see that it runs and that this host reaches it: kubectl version",
        ),
    }
}

/// Judges the version of the API server. (Some clouds write a minor version such as `33+`.)
fn judge_version(version: &str, minor: &str) -> PreflightCheck {
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse::<u32>() {
        Ok(minor) if minor < OLDEST_MINOR => PreflightCheck::fail(
            "kubernetes",
            format!("the API server is {version}"),
            format!("upgrade the cluster to 1.{OLDEST_MINOR} or newer"),
        ),
        Ok(_) => PreflightCheck::ok("kubernetes", format!("the API server is {version}")),
        Err(_) => {
            PreflightCheck::unknown("kubernetes", format!("its version reads `{version}`"), "")
        }
    }
}

/// The user as whom the API server knows us.
async fn api_user(client: &Client, is_daemon: bool) -> ApiUser {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    let user = review.ok().and_then(|review| review.status).and_then(|status| status.user_info);
    ApiUser::new(user.and_then(|user| user.username), is_daemon)
}

/// Checks that the namespace exists and accepts our Jobs: by a dry run, because a Role in one
/// namespace gives no right to read namespaces.
async fn namespace(client: &Client, required: ClusterRequirements<'_>) -> PreflightCheck {
    let JobDefaults { namespace, .. } = required.network;
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let job = match sample_job(required) {
        Ok(job) => job,
        Err(refusal) => {
            let found = format!("no Job to try: {refusal}");
            return PreflightCheck::unknown(namespace_name(namespace), found, "");
        }
    };
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    judge_namespace(namespace, jobs.create(&dry_run, &job).await.map(drop))
}

fn judge_namespace(namespace: &str, tried: Result<(), kube::Error>) -> PreflightCheck {
    let name = namespace_name(namespace);
    match tried {
        Ok(()) => PreflightCheck::ok(name, "it exists, and accepts Jobs (a dry run)"),
        Err(kube::Error::Api(status)) if status.code == 404 => PreflightCheck::fail(
            name,
            status.message,
            format!("kubectl create namespace {namespace}\nor choose another with `--namespace`"),
        ),
        // A running daemon holds its questions meanwhile, so a daemon that starts need not exit. A
        // missing right is found by its own check.
        Err(kube::Error::Api(status)) if status.code == 403 => PreflightCheck::warn(
            name,
            format!("it accepts no Job now, so questions are held: {}", status.message),
            format!(
                "its quota is exhausted, or a policy denies the Job; if not, a right is missing\n\
                 kubectl describe resourcequota -n {namespace}"
            ),
        ),
        Err(error) => PreflightCheck::warn(
            name,
            format!("a dry run of a Job failed: {}", message(&error)),
            "the usual cause is a webhook of the cluster that does not support dry runs",
        ),
    }
}

fn namespace_name(namespace: &str) -> String {
    format!("namespace {namespace}")
}

/// The Job of a question with defaults only: a policy that accepts it accepts our Jobs.
fn sample_job(required: ClusterRequirements<'_>) -> Result<Job, LaunchRefusal> {
    let ClusterRequirements { network, settings, .. } = required;
    let recipient: SruidBuf = "twined/check:check".parse().expect("it is an SRUID");
    let question = Uuid::new_v4();
    let attributes = HashMap::from([
        (ORIGINATOR_QUESTION_UUID.to_owned(), question.to_string()),
        (PARENT.to_owned(), recipient.to_string()),
        (ORIGINATOR.to_owned(), recipient.to_string()),
    ]);
    let service = settings.service(&recipient);
    job::manifest(&JobRequest {
        launch: LaunchRequest {
            run: RunId { question, retry: 0 },
            recipient: &recipient,
            parent_question: None,
            attributes: &attributes,
            inputs: Inputs::default(),
        },
        service: &service,
        network,
        gate: Gate::for_service(settings, &service),
        depth: 0,
        launched: Timestamp::now(),
        nonce: 0,
    })
}

/// Checks that the service account of questions exists, and returns its account of Google.
async fn account(
    client: &Client,
    required: ClusterRequirements<'_>,
) -> (PreflightCheck, Option<String>) {
    let ClusterRequirements { network: JobDefaults { namespace, .. }, service_account, .. } =
        required;
    let name = format!("service account {service_account}");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    match accounts.get_opt(service_account).await {
        Ok(Some(account)) => {
            let google = account.metadata.annotations.unwrap_or_default().remove(GOOGLE_ACCOUNT);
            let found = match &google {
                Some(google) => format!("it exists, as {google}"),
                None => "it exists".to_owned(),
            };
            (PreflightCheck::ok(name, found), google)
        }
        Ok(None) => {
            let remedy = format!(
                "kubectl create serviceaccount {service_account} -n {namespace}\n\
                 or name another with `--service-account`"
            );
            (
                PreflightCheck::fail(
                    name,
                    format!("it does not exist in namespace {namespace}"),
                    remedy,
                ),
                None,
            )
        }
        // The daemon needs no right to read it, so a missing right is no fault.
        Err(error) => {
            let found = format!("no right to read it: {}", message(&error));
            let look = format!("kubectl get serviceaccount {service_account} -n {namespace}");
            (PreflightCheck::unknown(name, found, look), None)
        }
    }
}

/// The version of Kueue's API; `None` if Kueue is not installed.
async fn kueue_version(client: &Client) -> Result<Option<String>, kube::Error> {
    let groups = client.list_api_groups().await?.groups;
    let kueue = groups.into_iter().find(|group| group.name == KUEUE);
    Ok(kueue.and_then(|group| {
        group.preferred_version.or_else(|| group.versions.into_iter().next()).map(|v| v.version)
    }))
}

async fn queue(
    client: &Client,
    required: ClusterRequirements<'_>,
    kueue: Result<Option<String>, kube::Error>,
) -> PreflightCheck {
    let (queue, version) = match (required.queue, kueue) {
        (None, _) => return PreflightCheck::ok("queue", "not configured: Kueue is not used"),
        (Some(queue), Err(error)) => {
            let found = format!("cannot tell whether Kueue is installed: {}", message(&error));
            return PreflightCheck::unknown(
                format!("queue {queue}"),
                found,
                "kubectl api-versions",
            );
        }
        (Some(queue), Ok(None)) => {
            return PreflightCheck::fail(
                format!("queue {queue}"),
                "Kueue is not installed: Jobs would wait for ever",
                "install Kueue, or leave `--queue` and KUEUE_LOCAL_QUEUE out",
            );
        }
        (Some(queue), Ok(Some(version))) => (queue, version),
    };
    let JobDefaults { namespace, .. } = required.network;
    let kind = GroupVersionKind::gvk(KUEUE, &version, "LocalQueue");
    let resource = ApiResource::from_gvk_with_plural(&kind, "localqueues");
    let queues: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    judge_queue(namespace, queue, &version, queues.get_opt(queue).await)
}

fn judge_queue(
    namespace: &str,
    queue: &str,
    version: &str,
    found: Result<Option<DynamicObject>, kube::Error>,
) -> PreflightCheck {
    let name = format!("queue {queue}");
    match found {
        Ok(Some(object)) => match inactive(&object.data) {
            None => PreflightCheck::ok(name, format!("it exists (Kueue {version})")),
            Some(why) => PreflightCheck::warn(
                name,
                format!("it is not active, so Jobs wait: {why}"),
                format!("kubectl describe localqueues.{KUEUE} {queue} -n {namespace}"),
            ),
        },
        Ok(None) => PreflightCheck::fail(
            name,
            format!("it does not exist in namespace {namespace}"),
            format!(
                "kubectl apply -f - <<'END'\n\
                 apiVersion: {KUEUE}/{version}\n\
                 kind: LocalQueue\n\
                 metadata: {{name: {queue}, namespace: {namespace}}}\n\
                 spec: {{clusterQueue: NAME OF YOUR CLUSTER QUEUE}}\n\
                 END\n\
                 list those that exist: kubectl get localqueues.{KUEUE} -n {namespace}"
            ),
        ),
        Err(error) => PreflightCheck::unknown(
            name,
            format!("no right to read it: {}", message(&error)),
            format!("kubectl get localqueues.{KUEUE} {queue} -n {namespace}"),
        ),
    }
}

/// Why a queue is not active; `None` if it is, or if that is unknown.
fn inactive(queue: &Value) -> Option<String> {
    let conditions = queue.pointer("/status/conditions")?.as_array()?;
    let active = conditions.iter().find(|condition| condition["type"] == "Active")?;
    (active["status"] == "False").then(|| active["message"].as_str().unwrap_or("?").to_owned())
}

/// The message of an error, without repetitions: for a status of the API server its message alone.
fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        // The texts of other errors contain those of their sources.
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::kubernetes::settings::{ObjectName, ServiceFields};
    use kube::core::Status;
    use serde_json::json;

    fn queue(data: Value) -> DynamicObject {
        DynamicObject { types: None, metadata: Default::default(), data }
    }

    #[test]
    fn an_old_cluster_fails_and_the_version_of_a_cloud_is_read() {
        for (minor, verdict) in [
            ("25", Verdict::Fail),
            ("26", Verdict::Ok),
            ("33+", Verdict::Ok),
            ("", Verdict::Unknown),
        ] {
            assert_eq!(judge_version("v", minor).verdict, verdict, "{minor}");
        }
    }

    #[test]
    fn an_inactive_queue_is_a_warning_with_its_reason() {
        let condition =
            json!({ "type": "Active", "status": "False", "message": "no cluster queue" });
        let stopped = queue(json!({ "status": { "conditions": [condition] } }));
        let check = judge_queue("n", "q", "v1beta1", Ok(Some(stopped)));
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.found.contains("no cluster queue"));

        let good = judge_queue("n", "q", "v1beta1", Ok(Some(queue(json!({})))));
        assert_eq!(good.verdict, Verdict::Ok);
        let none = judge_queue("n", "q", "v1beta1", Ok(None));
        assert_eq!(none.verdict, Verdict::Fail);
        assert!(none.remedy.contains("kind: LocalQueue"));
    }

    #[test]
    fn the_job_of_the_dry_run_is_like_those_of_questions() {
        let network = JobDefaults {
            namespace: "n".into(),
            images: "host/repository".into(),
            topic: "t".into(),
            environment: Vec::new(),
        };
        let text = "defaults: {memory: {default: 3Gi}, security: restricted}";
        let base = ServiceFields {
            service_account: Some(ObjectName("s".into())),
            ..ServiceFields::default()
        };
        let settings = NetworkSettings::read(text, base).unwrap();
        let (network, settings, service_account) = (&network, &settings, "s");
        let required = ClusterRequirements {
            network,
            settings,
            service_account,
            queue: None,
            is_daemon: true,
        };

        let job = sample_job(required).unwrap();

        let pod = job.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.service_account_name.as_deref(), Some("s"));
        let container = &pod.containers[0];
        assert_eq!(container.image.as_deref(), Some("host/repository/twined/check:check"));
        let requests = container.resources.as_ref().unwrap().requests.as_ref().unwrap();
        assert_eq!(requests["memory"].0, "3Gi");
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
    }

    #[test]
    fn a_namespace_with_an_exhausted_quota_is_a_warning() {
        let refused = |code, message: &str| {
            let status = Status { code, message: message.to_owned(), ..Status::default() };
            judge_namespace("n", Err(kube::Error::Api(Box::new(status))))
        };
        let full = refused(403, "exceeded quota: few");
        assert_eq!(full.verdict, Verdict::Warn);
        assert!(full.found.contains("exceeded quota: few"), "{}", full.found);
        assert_eq!(refused(404, "no such namespace").verdict, Verdict::Fail);
        assert_eq!(judge_namespace("n", Ok(())).verdict, Verdict::Ok);
    }
}
