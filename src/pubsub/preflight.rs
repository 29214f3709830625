//! Checks a network's Pub/Sub before the daemon works with it: what exists, and what the daemon may
//! do.
//!
//! Whether subscriptions can be created is checked by creating one, which is deleted at once.

pub mod questions;
use crate::preflight::{CheckedRights, PreflightCheck, PreflightIdentity, Verdict};
use crate::pubsub::{Admin, CallError, Connection, SubscriptionSpec};
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

/// The rights of the custom role: all that the daemon and a question's pod need. Google's own roles
/// would let them delete the topic.
const ROLE_RIGHTS: [&str; 7] = [
    "pubsub.topics.attachSubscription",
    "pubsub.topics.get",
    "pubsub.topics.publish",
    "pubsub.subscriptions.consume",
    "pubsub.subscriptions.create",
    "pubsub.subscriptions.delete",
    "pubsub.subscriptions.get",
];

/// The name of the custom role.
const ROLE: &str = "twinedPubSub";

/// Explains `ACCOUNT` in commands.
const DAEMON: &str = "(ACCOUNT is the daemon's service account, an e-mail address)";

/// What the daemon needs of Pub/Sub.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PubsubRequirements<'a> {
    /// The network's topic.
    pub(crate) topic: &'a str,
    /// The subscription that the daemon's replicas share.
    pub(crate) subscription: &'a str,
    /// The project of both.
    pub(crate) project: &'a str,
    /// The account with whose credentials Google's Pub/Sub is checked. `None` for an emulator,
    /// which has no rights, and where the daemon creates the topic.
    pub(crate) google: Option<&'a PreflightIdentity>,
}

/// Rights on one topic or subscription.
struct ResourceRights {
    name: String,
    resource: String,
    rights: &'static [&'static str],
}

/// Checks Pub/Sub.
pub(crate) async fn check_pubsub(
    connection: &Connection,
    required: PubsubRequirements<'_>,
) -> Vec<PreflightCheck> {
    let identity = required.google.map(|identity| identity.check("Pub/Sub"));
    let mut checks: Vec<_> = identity.into_iter().collect();
    let topic = topic(connection, required).await;
    let reached = topic.verdict != Verdict::Fail;
    checks.push(topic);
    if !reached {
        return checks;
    }
    let (subscription, creation, rights) = tokio::join!(
        subscription(connection, required),
        creation(connection, required),
        rights(connection, required),
    );
    checks.extend([subscription, creation]);
    checks.extend(rights);
    checks
}

async fn topic(connection: &Connection, required: PubsubRequirements<'_>) -> PreflightCheck {
    let PubsubRequirements { topic, project, google, .. } = required;
    let name = format!("topic {topic}");
    let mut topics = PublisherClient::new(connection.transport());
    let full = connection.topic(topic);
    match topics.get_topic(GetTopicRequest { topic: full.clone() }).await {
        Ok(_) => PreflightCheck::ok(name, "it exists"),
        Err(status) if status.code() == Code::NotFound && google.is_none() => {
            PreflightCheck::ok(name, "it does not exist yet: on an emulator the daemon creates it")
        }
        Err(status) if status.code() == Code::NotFound => PreflightCheck::fail(
            name,
            format!("it does not exist in project {project}"),
            format!(
                "gcloud pubsub topics create {topic} --project {project}\n\
                 or choose another with `--topic` (TWINED_SERVICES_TOPIC_NAME)"
            ),
        ),
        Err(status) => failed(name, required, &connection.error("get topic", &full, status)),
    }
}

async fn subscription(connection: &Connection, required: PubsubRequirements<'_>) -> PreflightCheck {
    let name = format!("subscription {}", required.subscription);
    let mut subscriptions = SubscriberClient::new(connection.transport());
    let full = connection.subscription(required.subscription);
    let request = GetSubscriptionRequest { subscription: full.clone() };
    match subscriptions.get_subscription(request).await {
        Ok(found) => {
            let topic = connection.topic(required.topic);
            judge_subscription(name, &topic, required, found.get_ref())
        }
        Err(status) if status.code() == Code::NotFound => {
            PreflightCheck::ok(name, "it does not exist yet: the daemon creates it")
        }
        Err(status) => failed(name, required, &connection.error("get subscription", &full, status)),
    }
}

/// Judges whether the daemon can work with a subscription.
fn judge_subscription(
    name: String,
    topic: &str,
    required: PubsubRequirements<'_>,
    found: &Subscription,
) -> PreflightCheck {
    let PubsubRequirements { subscription, project, .. } = required;
    let remedy = format!(
        "gcloud pubsub subscriptions delete {subscription} --project {project}\n\
         (the daemon creates it again) or choose another with `--subscription`"
    );
    if found.topic != topic {
        let found = format!("it belongs to another topic, {}", found.topic);
        return PreflightCheck::fail(name, found, remedy);
    }
    if !found.filter.is_empty() {
        let found = format!("its filter leaves out events: {}", found.filter);
        return PreflightCheck::fail(name, found, remedy);
    }
    if found.push_config.as_ref().is_some_and(|push| !push.push_endpoint.is_empty()) {
        return PreflightCheck::fail(name, "it is a push subscription: nothing to pull", remedy);
    }
    if !found.enable_message_ordering {
        let found = "it has no message ordering: a cancellation may overtake its question";
        return PreflightCheck::warn(name, found, remedy);
    }
    PreflightCheck::ok(name, "it exists")
}

/// Creates a subscription and deletes it: the daemon creates some, and so does a service that asks
/// others.
async fn creation(connection: &Connection, required: PubsubRequirements<'_>) -> PreflightCheck {
    let name = "creating subscriptions";
    let admin = Admin::new(connection);
    if required.google.is_none()
        && let Err(error) = admin.ensure_topic(required.topic).await
    {
        return failed(name.to_owned(), required, &error);
    }
    let trial = trial_subscription(required.topic);
    if let Err(error) = admin.subscribe(&trial).await {
        return failed(name.to_owned(), required, &error);
    }
    match admin.delete_subscription(&trial.name).await {
        Ok(()) => PreflightCheck::ok(name, "one was created and deleted"),
        Err(error) => PreflightCheck::warn(
            name,
            format!("one was created, and cannot be deleted: {}", error.chain()),
            format!(
                "gcloud pubsub subscriptions delete {} --project {}",
                trial.name, required.project
            ),
        ),
    }
}

/// A subscription that receives nothing, so that it does no harm if it remains. It expires in a
/// day.
fn trial_subscription(topic: &str) -> SubscriptionSpec {
    let random = Uuid::new_v4().simple().to_string();
    let name = format!("twined.check.{}", &random[..12]);
    let filter = "attributes.recipient = \"nobody\"".to_owned();
    SubscriptionSpec { filter, ..SubscriptionSpec::for_view(topic, &name) }
}

async fn rights(connection: &Connection, required: PubsubRequirements<'_>) -> Vec<PreflightCheck> {
    let PubsubRequirements { topic, subscription, google, .. } = required;
    let Some(identity) = google else {
        return vec![PreflightCheck::ok("rights on Pub/Sub", "not needed for an emulator")];
    };
    let topic = ResourceRights::new("topic", connection.topic(topic), &TOPIC_RIGHTS);
    let subscription = connection.subscription(subscription);
    let subscription = ResourceRights::new("subscription", subscription, &SUBSCRIPTION_RIGHTS);
    let (of_topic, of_subscription) =
        tokio::join!(topic.missing(connection), subscription.missing(connection));
    vec![
        topic.judge(required, identity, of_topic),
        match of_subscription {
            Err(error) if error.is_not_found() => PreflightCheck::unknown(
                subscription.name,
                "it does not exist yet: check again when the daemon has created it",
                "",
            ),
            missing => subscription.judge(required, identity, missing),
        },
    ]
}

/// The rights on a resource that the account of the connection does not have.
async fn missing_rights(
    connection: &Connection,
    resource: &str,
    rights: &[&'static str],
) -> Result<Vec<&'static str>, CallError> {
    let mut policies = IamPolicyClient::new(connection.transport());
    let permissions = rights.iter().map(|right| (*right).to_owned()).collect();
    let request = TestIamPermissionsRequest { resource: resource.to_owned(), permissions };
    match policies.test_iam_permissions(request).await {
        Ok(answer) => {
            let granted = answer.into_inner().permissions;
            let missing = |right: &&str| !granted.iter().any(|granted| granted == right);
            Ok(rights.iter().copied().filter(missing).collect())
        }
        Err(status) => Err(connection.error("test rights on", resource, status)),
    }
}

// === impl ResourceRights ===

impl ResourceRights {
    fn new(kind: &str, resource: String, rights: &'static [&'static str]) -> Self {
        Self { name: format!("rights on the {kind}"), resource, rights }
    }

    async fn missing(&self, connection: &Connection) -> Result<Vec<&'static str>, CallError> {
        missing_rights(connection, &self.resource, self.rights).await
    }

    fn judge(
        &self,
        required: PubsubRequirements<'_>,
        identity: &PreflightIdentity,
        missing: Result<Vec<&'static str>, CallError>,
    ) -> PreflightCheck {
        let Self { name, resource, rights } = self;
        match missing {
            Ok(missing) => CheckedRights {
                name,
                rights,
                missing: &missing,
                loss: None,
                review: format!("{}\n{DAEMON}", review_command("ACCOUNT", resource, rights)),
                grant: grant_to_daemon(required),
            }
            .judge(identity),
            Err(error) => PreflightCheck::unknown(name, error.chain(), grant_to_daemon(required)),
        }
    }
}

/// A command that asks which of these rights another account has.
fn review_command(account: &str, resource: &str, rights: &[&str]) -> String {
    let rights = serde_json::json!({ "permissions": rights });
    format!(
        "curl -s -H \"Authorization: Bearer $(gcloud auth print-access-token \
         --impersonate-service-account={account})\" -H 'Content-Type: application/json' \
         -d '{rights}' https://pubsub.googleapis.com/v1/{resource}:testIamPermissions"
    )
}

/// The check whose call failed.
fn failed(name: String, required: PubsubRequirements<'_>, error: &CallError) -> PreflightCheck {
    let remedy = match (error.code, required.google) {
        (Code::PermissionDenied | Code::Unauthenticated, Some(_)) => grant_to_daemon(required),
        (Code::InvalidArgument, _) => "see `--topic`, `--project` and `--subscription`".to_owned(),
        (_, Some(_)) => "see that this host reaches pubsub.googleapis.com".to_owned(),
        (_, None) => "see that the emulator runs (`twined emulator` is one), and that `--pubsub` \
                      or PUBSUB_EMULATOR_HOST has its address"
            .to_owned(),
    };
    match required.google {
        // The daemon's account may have the right.
        Some(identity) if !identity.is_daemon && error.code == Code::PermissionDenied => {
            PreflightCheck::unknown(name, error.chain(), remedy)
        }
        Some(_) | None => PreflightCheck::fail(name, error.chain(), remedy),
    }
}

fn grant_to_daemon(required: PubsubRequirements<'_>) -> String {
    let commands = grant_commands(required.project, "ACCOUNT");
    format!("{commands}\n{DAEMON}")
}

/// Commands that grant a service account what the daemon, or a question, does on Pub/Sub, and no
/// more.
pub(crate) fn grant_commands(project: &str, account: &str) -> String {
    let rights = ROLE_RIGHTS.join(",");
    format!(
        "gcloud iam roles create {ROLE} --project {project} --permissions={rights}\n\
         (once in a project; if it exists: gcloud iam roles update)\n\
         gcloud projects add-iam-policy-binding {project} --member serviceAccount:{account} \
         --role projects/{project}/roles/{ROLE} --condition=None"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use google_cloud_googleapis::pubsub::v1::PushConfig;

    const REQUIRED: PubsubRequirements<'_> =
        PubsubRequirements { topic: "t", subscription: "s", project: "p", google: None };

    fn verdict(change: impl FnOnce(&mut Subscription)) -> Verdict {
        let mut subscription = Subscription {
            topic: "projects/p/topics/t".to_owned(),
            enable_message_ordering: true,
            ..Subscription::default()
        };
        change(&mut subscription);
        judge_subscription("s".to_owned(), "projects/p/topics/t", REQUIRED, &subscription).verdict
    }

    #[test]
    fn a_subscription_that_would_miss_events_fails_the_check() {
        assert_eq!(verdict(|_| ()), Verdict::Ok);
        assert_eq!(verdict(|s| s.topic = "_deleted-topic_".into()), Verdict::Fail);
        assert_eq!(verdict(|s| s.filter = "attributes.a = \"b\"".into()), Verdict::Fail);
        assert_eq!(verdict(|s| s.enable_message_ordering = false), Verdict::Warn);
        let push = PushConfig { push_endpoint: "https://x".into(), ..PushConfig::default() };
        assert_eq!(verdict(|s| s.push_config = Some(push)), Verdict::Fail);
    }

    /// The check of an account that lacks some of the rights on the topic.
    fn judged(is_daemon: bool, missing: &[&'static str]) -> PreflightCheck {
        let identity = PreflightIdentity { name: "somebody".to_owned(), is_daemon };
        let required = PubsubRequirements { google: Some(&identity), ..REQUIRED };
        let rights = ResourceRights::new("topic", "projects/p/topics/t".to_owned(), &TOPIC_RIGHTS);
        rights.judge(required, &identity, Ok(missing.to_vec()))
    }

    #[test]
    fn the_rights_of_a_person_are_not_those_of_the_daemon() {
        assert_eq!(judged(true, &[]).verdict, Verdict::Ok);
        for missing in [&[][..], &["pubsub.topics.publish"]] {
            let check = judged(false, missing);
            assert_eq!(check.verdict, Verdict::Unknown);
            assert!(check.found.starts_with("somebody may"), "{}", check.found);
            assert!(check.remedy.contains("--impersonate-service-account=ACCOUNT"));
            assert!(check.remedy.contains("v1/projects/p/topics/t:testIamPermissions"));
        }
    }

    #[test]
    fn missing_rights_are_named_with_the_commands_that_grant_them() {
        let check = judged(true, &["pubsub.topics.publish"]);
        assert_eq!(check.verdict, Verdict::Fail);
        assert_eq!(check.found, "missing: pubsub.topics.publish");
        assert!(check.remedy.contains("add-iam-policy-binding p --member"), "{}", check.remedy);
        assert!(check.remedy.contains("--role projects/p/roles/twinedPubSub"), "{}", check.remedy);
    }

    #[test]
    fn the_role_has_every_checked_right_and_cannot_delete_the_topic() {
        let commands = grant_commands("p", "a@p");
        let [_, rights] = *commands.split("--permissions=").collect::<Vec<_>>() else {
            panic!("{commands}")
        };
        let rights: Vec<_> = rights.lines().next().unwrap().split(',').collect();
        let mut expected: Vec<_> =
            ["attachSubscription", "get", "publish"].map(|r| format!("pubsub.topics.{r}")).into();
        expected.extend(
            ["consume", "create", "delete", "get"].map(|r| format!("pubsub.subscriptions.{r}")),
        );
        assert_eq!(rights, expected);
        for checked in TOPIC_RIGHTS.iter().chain(&SUBSCRIPTION_RIGHTS) {
            assert!(rights.contains(checked), "{checked}");
        }
        assert!(!commands.contains("roles/pubsub."), "{commands}");
    }
}
