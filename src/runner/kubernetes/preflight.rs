//! Looks at a cluster before we work in it: what is there, and what we may do.
//!
//! Nothing is changed: rights are asked for by reviews, and the one Job that is made is a dry run.
//! Each finding that stands in the way says how to mend it, in lines that can be copied.

mod rights;

use crate::chain::Chain;
use crate::check::Check;
use crate::event::attributes::{ORIGINATOR, ORIGINATOR_QUESTION_UUID, PARENT};
use crate::event::{Inputs, RunId, SruidBuf, Timestamp};
use crate::runner::LaunchRequest;
use crate::runner::kubernetes::job::{self, Gate, JobDefaults, JobRequest, LaunchRefusal};
use crate::runner::kubernetes::settings::NetworkSettings;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Api, Client, Config};
use rights::Subject;
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The oldest minor version of Kubernetes 1 whose Jobs can tell an eviction from a failure without
/// being set up for it (`podFailurePolicy`).
const OLDEST_MINOR: u32 = 26;

/// The group of Kueue's objects.
const KUEUE: &str = "kueue.x-k8s.io";

/// On a service account: which one of Google's it stands for.
const GOOGLE_ACCOUNT: &str = "iam.gke.io/gcp-service-account";

/// What the daemon is to work with.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What all questions have in common, where they run among it.
    pub network: &'a JobDefaults,
    /// What each service may have.
    pub settings: &'a NetworkSettings,
    /// As whom questions run.
    pub service_account: &'a str,
    /// The local queue that they wait in.
    pub queue: Option<&'a str>,
    /// Whether it is the daemon that looks, whoever it is: a person's rights are not the daemon's.
    pub is_daemon: bool,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// All that was looked at.
    pub checks: Vec<Check>,
    /// The account of Google that questions are, where it can be told.
    pub google_account: Option<String>,
}

/// Looks at the cluster that the process is set up for.
pub async fn look(wanted: Wanted<'_>) -> Findings {
    let mut findings = Findings { checks: Vec::new(), google_account: None };
    let client = match client().await {
        Ok(client) => client,
        Err(check) => {
            findings.checks.push(check);
            return findings;
        }
    };
    let version = version(&client).await;
    let reached = version.verdict != crate::check::Verdict::Fail;
    findings.checks.push(version);
    if !reached {
        return findings;
    }
    let subject = subject(&client, wanted.is_daemon).await;
    findings.checks.push(subject.asker().check("Kubernetes"));
    let kueue = kueue_version(&client).await;
    let served = matches!(kueue, Ok(Some(_)));
    let (namespace, rights, (account, google), queue) = tokio::join!(
        namespace(&client, wanted),
        rights::checks(&client, &wanted.network.namespace, &subject, served),
        account(&client, wanted),
        queue(&client, wanted, kueue),
    );
    findings.checks.push(namespace);
    findings.checks.extend(rights);
    findings.checks.push(account);
    findings.checks.push(queue);
    findings.google_account = google;
    findings
}

async fn client() -> Result<Client, Check> {
    let remedy = "set KUBECONFIG to the file of a cluster's access, or run in a pod whose service \
                  account token is mounted";
    let fail = |words: String| Check::fail("kubernetes", words, remedy);
    let mut config = Config::infer().await.map_err(|error| fail(Chain(&error).to_string()))?;
    config.connect_timeout = Some(TIMEOUT);
    config.read_timeout = Some(TIMEOUT);
    Client::try_from(config).map_err(|error| fail(words(&error)))
}

async fn version(client: &Client) -> Check {
    match client.apiserver_version().await {
        Ok(info) => judge_version(&info.git_version, &info.minor),
        Err(error) => Check::fail(
            "kubernetes",
            format!("the API server does not answer: {}", words(&error)),
            "see that it runs and that this host reaches it: kubectl version",
        ),
    }
}

/// (Some clouds write a minor version such as `33+`.)
fn judge_version(version: &str, minor: &str) -> Check {
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse::<u32>() {
        Ok(minor) if minor < OLDEST_MINOR => Check::fail(
            "kubernetes",
            format!("the API server is {version}"),
            format!("upgrade the cluster to 1.{OLDEST_MINOR} or newer"),
        ),
        Ok(_) => Check::ok("kubernetes", format!("the API server is {version}")),
        Err(_) => Check::unknown("kubernetes", format!("its version reads `{version}`"), ""),
    }
}

/// Who we are there.
async fn subject(client: &Client, is_daemon: bool) -> Subject {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    let user = review.ok().and_then(|review| review.status).and_then(|status| status.user_info);
    Subject::new(user.and_then(|user| user.username), is_daemon)
}

/// Whether the namespace is there, and takes Jobs such as ours: by a dry run, for a Role in one
/// namespace gives no right to read namespaces.
async fn namespace(client: &Client, wanted: Wanted<'_>) -> Check {
    let JobDefaults { namespace, .. } = wanted.network;
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let job = match sample(wanted) {
        Ok(job) => job,
        Err(refusal) => {
            let found = format!("no Job to try: {refusal}");
            return Check::unknown(namespace_name(namespace), found, "");
        }
    };
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    judge_namespace(namespace, jobs.create(&dry_run, &job).await.map(drop))
}

fn judge_namespace(namespace: &str, tried: Result<(), kube::Error>) -> Check {
    let name = namespace_name(namespace);
    match tried {
        Ok(()) => Check::ok(name, "it is there, and takes Jobs (a dry run)"),
        Err(kube::Error::Api(status)) if status.code == 404 => Check::fail(
            name,
            status.message,
            format!("kubectl create namespace {namespace}\nor choose another with `--namespace`"),
        ),
        // A daemon that works holds its questions meanwhile, so one that starts need not end. A
        // right that is missing is found by its own check.
        Err(kube::Error::Api(status)) if status.code == 403 => Check::warn(
            name,
            format!("it takes no Job now, so questions are held: {}", status.message),
            format!(
                "a quota that is used up, or a policy, says no; if not, a right is missing\n\
                 kubectl describe resourcequota -n {namespace}"
            ),
        ),
        Err(error) => Check::warn(
            name,
            format!("a dry run of a Job failed: {}", words(&error)),
            "a webhook of the cluster that does not take dry runs is the usual cause",
        ),
    }
}

fn namespace_name(namespace: &str) -> String {
    format!("namespace {namespace}")
}

/// The Job of a question that asks for nothing, to a service of whose settings none are its own: a
/// policy that takes what we make takes this.
fn sample(wanted: Wanted<'_>) -> Result<Job, LaunchRefusal> {
    let Wanted { network, settings, .. } = wanted;
    let recipient: SruidBuf = "twined/check:check".parse().expect("it is an SRUID");
    let question = Uuid::new_v4();
    let attributes = HashMap::from([
        (ORIGINATOR_QUESTION_UUID.to_owned(), question.to_string()),
        (PARENT.to_owned(), recipient.to_string()),
        (ORIGINATOR.to_owned(), recipient.to_string()),
    ]);
    let service = settings.of(&recipient);
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
        gate: Gate::of(settings, &service),
        depth: 0,
        launched: Timestamp::now(),
        nonce: 0,
    })
}

/// Whether the service account of questions is there; and which of Google's it stands for.
async fn account(client: &Client, wanted: Wanted<'_>) -> (Check, Option<String>) {
    let Wanted { network: JobDefaults { namespace, .. }, service_account, .. } = wanted;
    let name = format!("service account {service_account}");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    match accounts.get_opt(service_account).await {
        Ok(Some(account)) => {
            let google = account.metadata.annotations.unwrap_or_default().remove(GOOGLE_ACCOUNT);
            let found = match &google {
                Some(google) => format!("it is there, as {google}"),
                None => "it is there".to_owned(),
            };
            (Check::ok(name, found), google)
        }
        Ok(None) => {
            let remedy = format!(
                "kubectl create serviceaccount {service_account} -n {namespace}\n\
                 or name another with `--service-account`"
            );
            (Check::fail(name, format!("not there, in namespace {namespace}"), remedy), None)
        }
        // The daemon needs no such right, so that it has none is as it should be.
        Err(error) => {
            let found = format!("we may not look: {}", words(&error));
            let look = format!("kubectl get serviceaccount {service_account} -n {namespace}");
            (Check::unknown(name, found, look), None)
        }
    }
}

/// The version of Kueue's objects that is served; none where Kueue is not there.
async fn kueue_version(client: &Client) -> Result<Option<String>, kube::Error> {
    let groups = client.list_api_groups().await?.groups;
    let kueue = groups.into_iter().find(|group| group.name == KUEUE);
    Ok(kueue.and_then(|group| {
        group.preferred_version.or_else(|| group.versions.into_iter().next()).map(|v| v.version)
    }))
}

async fn queue(
    client: &Client,
    wanted: Wanted<'_>,
    kueue: Result<Option<String>, kube::Error>,
) -> Check {
    let (queue, version) = match (wanted.queue, kueue) {
        (None, _) => return Check::ok("queue", "none is asked for: Kueue is not used"),
        (Some(queue), Err(error)) => {
            let found = format!("cannot tell whether Kueue is there: {}", words(&error));
            return Check::unknown(format!("queue {queue}"), found, "kubectl api-versions");
        }
        (Some(queue), Ok(None)) => {
            return Check::fail(
                format!("queue {queue}"),
                "Kueue is not there: Jobs would wait for ever",
                "install Kueue, or leave `--queue` and KUEUE_LOCAL_QUEUE out",
            );
        }
        (Some(queue), Ok(Some(version))) => (queue, version),
    };
    let JobDefaults { namespace, .. } = wanted.network;
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
) -> Check {
    let name = format!("queue {queue}");
    match found {
        Ok(Some(object)) => match inactive(&object.data) {
            None => Check::ok(name, format!("it is there (Kueue {version})")),
            Some(why) => Check::warn(
                name,
                format!("it takes nothing now: {why}"),
                format!("kubectl describe localqueues.{KUEUE} {queue} -n {namespace}"),
            ),
        },
        Ok(None) => Check::fail(
            name,
            format!("not there, in namespace {namespace}"),
            format!(
                "kubectl apply -f - <<'END'\n\
                 apiVersion: {KUEUE}/{version}\n\
                 kind: LocalQueue\n\
                 metadata: {{name: {queue}, namespace: {namespace}}}\n\
                 spec: {{clusterQueue: NAME OF YOUR CLUSTER QUEUE}}\n\
                 END\n\
                 see which there are: kubectl get localqueues.{KUEUE} -n {namespace}"
            ),
        ),
        Err(error) => Check::unknown(
            name,
            format!("we may not look: {}", words(&error)),
            format!("kubectl get localqueues.{KUEUE} {queue} -n {namespace}"),
        ),
    }
}

/// Why a queue is not active; none where it is, or does not say.
fn inactive(queue: &Value) -> Option<String> {
    let conditions = queue.pointer("/status/conditions")?.as_array()?;
    let active = conditions.iter().find(|condition| condition["type"] == "Active")?;
    (active["status"] == "False").then(|| active["message"].as_str().unwrap_or("?").to_owned())
}

/// What an error says, once: an answer of the API server by its message alone.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        // Their texts repeat their sources.
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use crate::runner::kubernetes::settings::{ObjectName, ServiceFields};
    use kube::core::Status;
    use serde_json::json;

    fn queue(data: Value) -> DynamicObject {
        DynamicObject { types: None, metadata: Default::default(), data }
    }

    #[test]
    fn an_old_cluster_is_refused_and_a_cloud_s_version_is_read() {
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
    fn a_queue_that_takes_nothing_says_why() {
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
    fn the_job_that_is_tried_is_as_those_of_questions_are() {
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
        let wanted = Wanted { network, settings, service_account, queue: None, is_daemon: true };

        let job = sample(wanted).unwrap();

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
    fn a_namespace_that_takes_no_job_now_does_not_keep_the_daemon_from_starting() {
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
