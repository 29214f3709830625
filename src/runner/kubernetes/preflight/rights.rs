//! The rights of the daemon in its namespace, verb by verb.

use crate::preflight::{CheckedRights, PreflightCheck, PreflightIdentity};
use futures_util::future::join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

/// The rights that the daemon's Role grants: exactly those that the daemon uses.
const RIGHTS: [Right; 5] = [
    Right::needed("batch", "jobs", &["create", "get", "list", "watch", "patch", "delete"]),
    Right::needed("", "pods", &["list", "watch"]),
    Right {
        without: Some("parents are not notified why a pod does not start"),
        ..Right::needed("", "events", &["list"])
    },
    Right {
        without: Some("questions that are too large for arguments, or have `children`, do not run"),
        ..Right::needed("", "secrets", &["create"])
    },
    Right::needed("coordination.k8s.io", "leases", &["get", "create", "patch"]),
];

/// The rights that the Role grants where Kueue is installed.
const KUEUE_RIGHTS: [Right; 2] = [
    Right {
        without: Some("parents are not notified what their question waits for in its queue"),
        ..Right::needed("kueue.x-k8s.io", "workloads", &["list", "watch"])
    },
    Right {
        without: Some("the preflight check cannot find a queue that does not exist"),
        ..Right::needed("kueue.x-k8s.io", "localqueues", &["get"])
    },
];

/// Verbs on one kind of object.
#[derive(Clone, Copy, Debug)]
struct Right {
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    /// What does not work without it; `None` if nothing works.
    without: Option<&'static str>,
}

/// The prefix of the user name of a service account.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// The user as whom we ask, to whom rights are granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiUser {
    user: Option<String>,
    is_daemon: bool,
}

/// Checks each right.
pub(super) async fn checks(
    client: &Client,
    namespace: &str,
    user: &ApiUser,
    kueue: bool,
) -> Vec<PreflightCheck> {
    let kueue: &[Right] = if kueue { &KUEUE_RIGHTS } else { &[] };
    let rights = RIGHTS.iter().chain(kueue);
    join_all(rights.map(|right| check(client, namespace, user, right))).await
}

async fn check(client: &Client, namespace: &str, user: &ApiUser, right: &Right) -> PreflightCheck {
    let reviews = right.verbs.iter().map(|verb| is_allowed(client, namespace, right, verb));
    let answers: Result<Vec<bool>, kube::Error> = join_all(reviews).await.into_iter().collect();
    match answers {
        Ok(answers) => {
            let missing = right.verbs.iter().zip(answers).filter(|(_, allowed)| !allowed);
            right.judge(namespace, user, &missing.map(|(verb, _)| *verb).collect::<Vec<_>>())
        }
        Err(error) => PreflightCheck::unknown(
            right.name(),
            format!("the API server does not answer the review: {error}"),
            format!("kubectl auth can-i --list -n {namespace}"),
        ),
    }
}

async fn is_allowed(
    client: &Client,
    namespace: &str,
    right: &Right,
    verb: &str,
) -> Result<bool, kube::Error> {
    let attributes = ResourceAttributes {
        group: Some(right.group.to_owned()),
        resource: Some(right.resource.to_owned()),
        namespace: Some(namespace.to_owned()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(attributes),
        ..SelfSubjectAccessReviewSpec::default()
    };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

// === impl Right ===

impl Right {
    const fn needed(
        group: &'static str,
        resource: &'static str,
        verbs: &'static [&'static str],
    ) -> Self {
        Self { group, resource, verbs, without: None }
    }

    fn name(&self) -> String {
        format!("rights on {}", self.resource)
    }

    /// The kind, as kubectl names it.
    fn qualified_resource(&self) -> String {
        match self.group {
            "" => self.resource.to_owned(),
            group => format!("{}.{group}", self.resource),
        }
    }

    fn judge(&self, namespace: &str, user: &ApiUser, missing: &[&str]) -> PreflightCheck {
        CheckedRights {
            name: &self.name(),
            rights: self.verbs,
            missing,
            loss: self.without,
            review: self.review_command(namespace),
            grant: self.grant_commands(namespace, user),
        }
        .judge(&user.identity())
    }

    /// A command that asks for the right as the daemon's account.
    fn review_command(&self, namespace: &str) -> String {
        let (verbs, kind) = (self.verbs.join(" "), self.qualified_resource());
        format!(
            "for verb in {verbs}; do kubectl auth can-i $verb {kind} -n {namespace} \
             --as {ACCOUNT_PREFIX}NAMESPACE:NAME; done"
        )
    }

    /// Commands that grant the right, and may be run again.
    fn grant_commands(&self, namespace: &str, user: &ApiUser) -> String {
        let role = format!("twined-{}", self.resource);
        let apply = "--dry-run=client -o yaml | kubectl apply -f -";
        let (verbs, kind) = (self.verbs.join(","), self.qualified_resource());
        let user = user.flag();
        format!(
            "kubectl create role {role} -n {namespace} --verb={verbs} --resource={kind} {apply}\n\
             kubectl create rolebinding {role} -n {namespace} --role={role} {user} {apply}"
        )
    }
}

// === impl ApiUser ===

impl ApiUser {
    /// The user of this name, if the API server reports one. `is_daemon`: the daemon makes the
    /// checks.
    pub(super) fn new(user: Option<String>, is_daemon: bool) -> Self {
        Self { user, is_daemon }
    }

    /// The user, for checks. In a cluster the daemon is a service account, so a check that runs as
    /// any service account speaks for the daemon.
    pub(super) fn identity(&self) -> PreflightIdentity {
        let Self { user, is_daemon } = self;
        let account = user.as_deref().is_some_and(|user| user.starts_with(ACCOUNT_PREFIX));
        let name = match user {
            Some(user) => format!("`{user}`"),
            None => "a user that the API server does not name".to_owned(),
        };
        PreflightIdentity { name, is_daemon: *is_daemon || account }
    }

    /// The flag of kubectl that names the user.
    fn flag(&self) -> String {
        let user = self.user.as_deref();
        match (user.and_then(|user| user.strip_prefix(ACCOUNT_PREFIX)), user) {
            (Some(account), _) => format!("--serviceaccount={account}"),
            (None, Some(user)) => format!("--user='{}'", user.replace('\'', r"'\''")),
            (None, None) => "--serviceaccount=NAMESPACE:NAME".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Verdict;

    fn api_user(user: &str, is_daemon: bool) -> ApiUser {
        ApiUser::new(Some(user.to_owned()), is_daemon)
    }

    #[test]
    fn a_missing_right_is_granted_by_two_commands() {
        let user = api_user("system:serviceaccount:n:daemon", false);
        let check = RIGHTS[0].judge("n", &user, &["patch"]);

        assert_eq!((check.verdict, &*check.found), (Verdict::Fail, "missing: patch"));
        let verbs = "--verb=create,get,list,watch,patch,delete --resource=jobs.batch";
        assert!(check.remedy.contains(verbs), "{}", check.remedy);
        assert!(check.remedy.contains("--serviceaccount=n:daemon"), "{}", check.remedy);
        assert_eq!(check.remedy.lines().count(), 2);
    }

    #[test]
    fn a_missing_optional_right_is_a_warning_that_names_the_loss() {
        let check = RIGHTS[2].judge("n", &ApiUser::new(None, true), &["list"]);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.found.contains("parents are not notified"), "{}", check.found);
    }

    #[test]
    fn a_person_is_named_as_kubectl_expects() {
        assert_eq!(api_user("it's me", true).flag(), r"--user='it'\''s me'");
    }

    #[test]
    fn the_rights_of_a_person_are_not_those_of_the_daemon() {
        let admin = api_user("kubernetes-admin", false);
        for missing in [&[][..], &["patch"]] {
            let check = RIGHTS[0].judge("n", &admin, missing);
            assert_eq!(check.verdict, Verdict::Unknown);
            assert!(check.found.contains("`kubernetes-admin` may"), "{}", check.found);
            let as_the_daemon = "for verb in create get list watch patch delete; do kubectl auth \
                                 can-i $verb jobs.batch -n n --as system:serviceaccount:";
            assert!(check.remedy.starts_with(as_the_daemon), "{}", check.remedy);
        }
        assert_eq!(admin.identity().check("Kubernetes").verdict, Verdict::Unknown);

        // A daemon on a laptop runs as its owner.
        let daemon = api_user("kubernetes-admin", true);
        assert_eq!(RIGHTS[0].judge("n", &daemon, &[]).verdict, Verdict::Ok);
        assert_eq!(RIGHTS[0].judge("n", &daemon, &["patch"]).verdict, Verdict::Fail);
        assert_eq!(daemon.identity().check("Kubernetes").verdict, Verdict::Ok);
    }
}
