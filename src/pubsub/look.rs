//! Looks at a network's Pub/Sub before we work with it: what is there, and what we may do.
//!
//! Whether subscriptions may be made is seen by making one, which is deleted at once.

pub mod questions;
use crate::preflight::{PreflightCheck as Check, PreflightIdentity as Asker, Verdict};
use crate::pubsub::{Admin, CallError, Connection, admin};
use google_cloud_googleapis::iam::v1::TestIamPermissionsRequest;
use google_cloud_googleapis::iam::v1::iam_policy_client::IamPolicyClient;
use google_cloud_googleapis::pubsub::v1::publisher_client::PublisherClient;
use google_cloud_googleapis::pubsub::v1::subscriber_client::SubscriberClient;
use google_cloud_googleapis::pubsub::v1::{GetSubscriptionRequest, GetTopicRequest, Subscription};
use tonic::Code;
use uuid::Uuid;

/// What the daemon does with its topic.
const TOPIC_RIGHTS: [&str; 3] =
    ["pubsub.topics.attachSubscription", "pubsub.topics.get", "pubsub.topics.publish"];

/// What the daemon does with its subscription.
const SUBSCRIPTION_RIGHTS: [&str; 2] = ["pubsub.subscriptions.consume", "pubsub.subscriptions.get"];

/// The rights that a role is made of: all that the daemon needs, and a question's pod as well. The
/// roles that Google has would let either delete the topic.
const ROLE_RIGHTS: [&str; 7] = [
    "pubsub.topics.attachSubscription",
    "pubsub.topics.get",
    "pubsub.topics.publish",
    "pubsub.subscriptions.consume",
    "pubsub.subscriptions.create",
    "pubsub.subscriptions.delete",
    "pubsub.subscriptions.get",
];

/// The name of that role.
const ROLE: &str = "twinedPubSub";

/// Who is meant in lines to be copied.
const DAEMON: &str = "(ACCOUNT is the daemon's service account, an e-mail address)";

/// What the daemon is to work with.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The network's topic.
    pub topic: &'a str,
    /// The subscription that the daemon's replicas share.
    pub subscription: &'a str,
    /// The project of both.
    pub project: &'a str,
    /// Who asks, where it is Google's. An emulator knows no rights, and topics are made there.
    pub google: Option<&'a Asker>,
}

/// Rights that are asked for.
struct Asked {
    name: String,
    resource: String,
    rights: &'static [&'static str],
}

/// Looks.
pub async fn look(connection: &Connection, wanted: Wanted<'_>) -> Vec<Check> {
    let mut checks: Vec<_> = wanted.google.iter().map(|asker| asker.check("Pub/Sub")).collect();
    let topic = topic(connection, wanted).await;
    let reached = topic.verdict != Verdict::Fail;
    checks.push(topic);
    if !reached {
        return checks;
    }
    let (subscription, probe, rights) = tokio::join!(
        subscription(connection, wanted),
        probe(connection, wanted),
        rights(connection, wanted),
    );
    checks.extend([subscription, probe]);
    checks.extend(rights);
    checks
}

async fn topic(connection: &Connection, wanted: Wanted<'_>) -> Check {
    let Wanted { topic, project, google, .. } = wanted;
    let name = format!("topic {topic}");
    let mut topics = PublisherClient::new(connection.transport());
    let full = connection.topic(topic);
    match topics.get_topic(GetTopicRequest { topic: full.clone() }).await {
        Ok(_) => Check::ok(name, "it is there"),
        Err(status) if status.code() == Code::NotFound && google.is_none() => {
            Check::ok(name, "not there yet: it is made, for this is an emulator")
        }
        Err(status) if status.code() == Code::NotFound => Check::fail(
            name,
            format!("not there, in project {project}"),
            format!(
                "gcloud pubsub topics create {topic} --project {project}\n\
                     or name another with `--topic`, which is TWINED_SERVICES_TOPIC_NAME"
            ),
        ),
        Err(status) => failed(name, wanted, &connection.error("get topic", &full, status)),
    }
}

async fn subscription(connection: &Connection, wanted: Wanted<'_>) -> Check {
    let name = format!("subscription {}", wanted.subscription);
    let mut subscriptions = SubscriberClient::new(connection.transport());
    let full = connection.subscription(wanted.subscription);
    match subscriptions
        .get_subscription(GetSubscriptionRequest { subscription: full.clone() })
        .await
    {
        Ok(found) => judge(name, &connection.topic(wanted.topic), wanted, found.get_ref()),
        Err(status) if status.code() == Code::NotFound => {
            Check::ok(name, "not there yet: the daemon makes it")
        }
        Err(status) => failed(name, wanted, &connection.error("get subscription", &full, status)),
    }
}

/// Whether a subscription is one that the daemon can work with.
fn judge(name: String, topic: &str, wanted: Wanted<'_>, found: &Subscription) -> Check {
    let Wanted { subscription, project, .. } = wanted;
    let anew = format!(
        "gcloud pubsub subscriptions delete {subscription} --project {project}\n\
         (the daemon makes it anew) or choose another with `--subscription`"
    );
    if found.topic != topic {
        return Check::fail(name, format!("it is of another topic, {}", found.topic), anew);
    }
    if !found.filter.is_empty() {
        let found = format!("it has a filter, so events are missed: {}", found.filter);
        return Check::fail(name, found, anew);
    }
    if found.push_config.as_ref().is_some_and(|push| !push.push_endpoint.is_empty()) {
        return Check::fail(name, "it pushes, so there is nothing to pull", anew);
    }
    if !found.enable_message_ordering {
        let found = "it keeps no order: a cancellation may overtake its question";
        return Check::warn(name, found, anew);
    }
    Check::ok(name, "it is there")
}

/// Makes a subscription and deletes it, for the daemon makes some, as do those who ask.
async fn probe(connection: &Connection, wanted: Wanted<'_>) -> Check {
    let name = "making subscriptions";
    let admin = Admin::new(connection);
    if wanted.google.is_none()
        && let Err(error) = admin.ensure_topic(wanted.topic).await
    {
        return failed(name.to_owned(), wanted, &error);
    }
    let probe = probe_of(wanted.topic);
    if let Err(error) = admin.subscribe(&probe).await {
        return failed(name.to_owned(), wanted, &error);
    }
    match admin.delete_subscription(&probe.name).await {
        Ok(()) => Check::ok(name, "one was made and deleted"),
        Err(error) => Check::warn(
            name,
            format!("one was made, and cannot be deleted: {}", error.chain()),
            format!(
                "gcloud pubsub subscriptions delete {} --project {}",
                probe.name, wanted.project
            ),
        ),
    }
}

/// A subscription that receives nothing that anybody waits for, so that one which stays does no harm.
/// It expires in a day.
fn probe_of(topic: &str) -> admin::Wanted {
    let random = Uuid::new_v4().simple().to_string();
    let name = format!("twined.check.{}", &random[..12]);
    let filter = "attributes.recipient = \"nobody\"".to_owned();
    admin::Wanted { filter, ..admin::Wanted::view_of(topic, &name) }
}

/// What we may do, where somebody says.
async fn rights(connection: &Connection, wanted: Wanted<'_>) -> Vec<Check> {
    let Wanted { topic, subscription, google, .. } = wanted;
    if google.is_none() {
        return vec![Check::ok("rights on Pub/Sub", "an emulator has none to give")];
    }
    let topic = Asked::of("topic", connection.topic(topic), &TOPIC_RIGHTS);
    let subscription = connection.subscription(subscription);
    let subscription = Asked::of("subscription", subscription, &SUBSCRIPTION_RIGHTS);
    let may = async |asked: &Asked| permitted(connection, &asked.resource, asked.rights).await;
    vec![
        topic.judge(wanted, may(&topic).await),
        match may(&subscription).await {
            Err(error) if error.is_not_found() => Check::unknown(
                subscription.name,
                "it is not there yet: to be looked at again when the daemon has made it",
                "",
            ),
            permitted => subscription.judge(wanted, permitted),
        },
    ]
}

/// Which of these rights on a resource whoever holds the connection has.
async fn permitted(
    connection: &Connection,
    resource: &str,
    rights: &[&str],
) -> Result<Vec<String>, CallError> {
    let mut policies = IamPolicyClient::new(connection.transport());
    let permissions = rights.iter().map(|right| (*right).to_owned()).collect();
    let request = TestIamPermissionsRequest { resource: resource.to_owned(), permissions };
    match policies.test_iam_permissions(request).await {
        Ok(answer) => Ok(answer.into_inner().permissions),
        Err(status) => Err(connection.error("test rights on", resource, status)),
    }
}

// === impl Asked ===

impl Asked {
    fn of(kind: &str, resource: String, rights: &'static [&'static str]) -> Self {
        Self { name: format!("rights on the {kind}"), resource, rights }
    }

    fn judge(&self, wanted: Wanted<'_>, permitted: Result<Vec<String>, CallError>) -> Check {
        let Self { name, resource, rights } = self;
        let permitted = match permitted {
            Ok(permitted) => permitted,
            Err(error) => return Check::unknown(name, error.chain(), grant(wanted)),
        };
        let missing = rights.iter().filter(|right| !permitted.iter().any(|had| had == *right));
        let missing: Vec<_> = missing.copied().collect();
        let found = match missing.is_empty() {
            true => rights.join(", "),
            false => format!("missing: {}", missing.join(", ")),
        };
        match wanted.google {
            Some(Asker { name: asker, is_daemon: false }) => {
                let ask = ask_as("ACCOUNT", resource, rights);
                Check::unknown(name, format!("of {asker}: {found}"), format!("{ask}\n{DAEMON}"))
            }
            Some(_) | None if missing.is_empty() => Check::ok(name, found),
            Some(_) | None => Check::fail(name, found, grant(wanted)),
        }
    }
}

/// A line that asks which of these rights another account has.
fn ask_as(account: &str, resource: &str, rights: &[&str]) -> String {
    let rights = serde_json::json!({ "permissions": rights });
    format!(
        "curl -s -H \"Authorization: Bearer $(gcloud auth print-access-token \
         --impersonate-service-account={account})\" -H 'Content-Type: application/json' \
         -d '{rights}' https://pubsub.googleapis.com/v1/{resource}:testIamPermissions"
    )
}

fn failed(name: String, wanted: Wanted<'_>, error: &CallError) -> Check {
    let google = wanted.google.is_some();
    let remedy = match (error.code, google) {
        (Code::PermissionDenied | Code::Unauthenticated, true) => grant(wanted),
        (Code::InvalidArgument, _) => "see `--topic`, `--project` and `--subscription`".to_owned(),
        (_, true) => "see that this host reaches pubsub.googleapis.com".to_owned(),
        (_, false) => {
            "see that the emulator runs, and that `--pubsub` or PUBSUB_EMULATOR_HOST has \
                       its address: `twined emulator` is one"
                .to_owned()
        }
    };
    match wanted.google {
        // The daemon may.
        Some(Asker { is_daemon: false, .. }) if error.code == Code::PermissionDenied => {
            Check::unknown(name, error.chain(), remedy)
        }
        Some(_) | None => Check::fail(name, error.chain(), remedy),
    }
}

/// Lines that grant the daemon what it needs.
fn grant(wanted: Wanted<'_>) -> String {
    let lines = grant_role(wanted.project, "ACCOUNT");
    format!("{lines}\n{DAEMON}")
}

/// Lines that grant a service account what the daemon, or a question, does on Pub/Sub, and no more.
pub fn grant_role(project: &str, account: &str) -> String {
    let rights = ROLE_RIGHTS.join(",");
    format!(
        "gcloud iam roles create {ROLE} --project {project} --permissions={rights}\n\
         (once in a project; of one that is there: gcloud iam roles update)\n\
         gcloud projects add-iam-policy-binding {project} --member serviceAccount:{account} \
         --role projects/{project}/roles/{ROLE} --condition=None"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use google_cloud_googleapis::pubsub::v1::PushConfig;

    const WANTED: Wanted<'_> = Wanted { topic: "t", subscription: "s", project: "p", google: None };

    fn verdict(change: impl FnOnce(&mut Subscription)) -> Verdict {
        let mut subscription = Subscription {
            topic: "projects/p/topics/t".to_owned(),
            enable_message_ordering: true,
            ..Subscription::default()
        };
        change(&mut subscription);
        judge("s".to_owned(), "projects/p/topics/t", WANTED, &subscription).verdict
    }

    #[test]
    fn a_subscription_by_which_events_would_be_missed_is_refused() {
        assert_eq!(verdict(|_| ()), Verdict::Ok);
        assert_eq!(verdict(|s| s.topic = "_deleted-topic_".into()), Verdict::Fail);
        assert_eq!(verdict(|s| s.filter = "attributes.a = \"b\"".into()), Verdict::Fail);
        assert_eq!(verdict(|s| s.enable_message_ordering = false), Verdict::Warn);
        let push = PushConfig { push_endpoint: "https://x".into(), ..PushConfig::default() };
        assert_eq!(verdict(|s| s.push_config = Some(push)), Verdict::Fail);
    }

    /// What is made of it that somebody has the first few of the rights on the topic.
    fn judged(is_daemon: bool, had: usize) -> Check {
        let had = TOPIC_RIGHTS[..had].iter().map(|right| (*right).to_owned()).collect();
        let asker = Asker { name: "somebody".to_owned(), is_daemon };
        let wanted = Wanted { google: Some(&asker), ..WANTED };
        Asked::of("topic", "projects/p/topics/t".to_owned(), &TOPIC_RIGHTS).judge(wanted, Ok(had))
    }

    #[test]
    fn what_a_person_may_says_nothing_of_the_daemon() {
        assert_eq!(judged(true, 3).verdict, Verdict::Ok);
        for had in [2, 3] {
            let check = judged(false, had);
            assert_eq!(check.verdict, Verdict::Unknown);
            assert!(check.found.starts_with("of somebody: "), "{}", check.found);
            assert!(check.remedy.contains("--impersonate-service-account=ACCOUNT"));
            assert!(check.remedy.contains("v1/projects/p/topics/t:testIamPermissions"));
        }
    }

    #[test]
    fn missing_rights_are_named_with_what_grants_them() {
        let check = judged(true, 2);
        assert_eq!(check.verdict, Verdict::Fail);
        assert_eq!(check.found, "missing: pubsub.topics.publish");
        assert!(check.remedy.contains("add-iam-policy-binding p --member"), "{}", check.remedy);
        assert!(check.remedy.contains("--role projects/p/roles/twinedPubSub"), "{}", check.remedy);
    }

    #[test]
    fn a_role_has_what_is_asked_for_and_cannot_delete_the_topic() {
        let lines = grant_role("p", "a@p");
        let [_, rights] = *lines.split("--permissions=").collect::<Vec<_>>() else {
            panic!("{lines}")
        };
        let rights: Vec<_> = rights.lines().next().unwrap().split(',').collect();
        let mut contract: Vec<_> =
            ["attachSubscription", "get", "publish"].map(|r| format!("pubsub.topics.{r}")).into();
        contract.extend(
            ["consume", "create", "delete", "get"].map(|r| format!("pubsub.subscriptions.{r}")),
        );
        assert_eq!(rights, contract);
        for asked in TOPIC_RIGHTS.iter().chain(&SUBSCRIPTION_RIGHTS) {
            assert!(rights.contains(asked), "{asked}");
        }
        assert!(!lines.contains("roles/pubsub."), "{lines}");
    }
}
