//! What the daemon may do in its namespace, verb by verb.

use crate::check::{Asker, Check};
use futures_util::future::join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

/// What the daemon's Role grants: each verb is used, and no other is.
const RIGHTS: [Right; 5] = [
    Right::needed("batch", "jobs", &["create", "get", "list", "watch", "patch", "delete"]),
    Right::needed("", "pods", &["list", "watch"]),
    Right {
        without: Some("askers are not told why a pod does not start"),
        ..Right::needed("", "events", &["list"])
    },
    Right {
        without: Some("questions that are too large for arguments, or have `children`, do not run"),
        ..Right::needed("", "secrets", &["create"])
    },
    Right::needed("coordination.k8s.io", "leases", &["get", "create", "patch"]),
];

/// What it grants where Kueue is.
const KUEUE_RIGHTS: [Right; 2] = [
    Right {
        without: Some("askers are not told what their question waits for in its queue"),
        ..Right::needed("kueue.x-k8s.io", "workloads", &["list", "watch"])
    },
    Right {
        without: Some("a queue that does not exist is not told to askers"),
        ..Right::needed("kueue.x-k8s.io", "localqueues", &["get"])
    },
];

/// What may be done with one kind of object.
#[derive(Clone, Copy, Debug)]
struct Right {
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    /// What does not work without it; none where nothing does.
    without: Option<&'static str>,
}

/// What the name of a service account begins with.
const ACCOUNT: &str = "system:serviceaccount:";

/// Who asks, and whom rights are granted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    user: Option<String>,
    is_daemon: bool,
}

/// Whether each right is there.
pub async fn checks(
    client: &Client,
    namespace: &str,
    subject: &Subject,
    kueue: bool,
) -> Vec<Check> {
    let kueue: &[Right] = if kueue { &KUEUE_RIGHTS } else { &[] };
    let rights = RIGHTS.iter().chain(kueue);
    join_all(rights.map(|right| check(client, namespace, subject, right))).await
}

async fn check(client: &Client, namespace: &str, subject: &Subject, right: &Right) -> Check {
    let asked = right.verbs.iter().map(|verb| may(client, namespace, right, verb));
    let answers: Result<Vec<bool>, kube::Error> = join_all(asked).await.into_iter().collect();
    match answers {
        Ok(answers) => {
            let missing = right.verbs.iter().zip(answers).filter(|(_, may)| !may);
            right.judge(namespace, subject, &missing.map(|(verb, _)| *verb).collect::<Vec<_>>())
        }
        Err(error) => Check::unknown(
            right.name(),
            format!("the API server does not say: {error}"),
            format!("kubectl auth can-i --list -n {namespace}"),
        ),
    }
}

async fn may(
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

    /// As kubectl names the kind.
    fn qualified(&self) -> String {
        match self.group {
            "" => self.resource.to_owned(),
            group => format!("{}.{group}", self.resource),
        }
    }

    fn judge(&self, namespace: &str, subject: &Subject, missing: &[&str]) -> Check {
        let Asker { name, is_daemon } = subject.asker();
        if !is_daemon {
            let found = match missing.is_empty() {
                true => format!("{name} may: {}", self.verbs.join(", ")),
                false => format!("{name} may not: {}", missing.join(", ")),
            };
            return Check::unknown(self.name(), found, self.ask(namespace));
        }
        if missing.is_empty() {
            return Check::ok(self.name(), self.verbs.join(", "));
        }
        let found = format!("missing: {}", missing.join(", "));
        let remedy = self.grant(namespace, subject);
        match self.without {
            Some(without) => Check::warn(self.name(), format!("{found}; {without}"), remedy),
            None => Check::fail(self.name(), found, remedy),
        }
    }

    /// A line that asks for it as the daemon's account.
    fn ask(&self, namespace: &str) -> String {
        let (verbs, kind) = (self.verbs.join(" "), self.qualified());
        format!(
            "for verb in {verbs}; do kubectl auth can-i $verb {kind} -n {namespace} \
             --as {ACCOUNT}NAMESPACE:NAME; done"
        )
    }

    /// Lines that grant it, however often they are run.
    fn grant(&self, namespace: &str, subject: &Subject) -> String {
        let role = format!("twined-{}", self.resource);
        let apply = "--dry-run=client -o yaml | kubectl apply -f -";
        let (verbs, kind) = (self.verbs.join(","), self.qualified());
        let subject = subject.flag();
        format!(
            "kubectl create role {role} -n {namespace} --verb={verbs} --resource={kind} {apply}\n\
             kubectl create rolebinding {role} -n {namespace} --role={role} {subject} {apply}"
        )
    }
}

// === impl Subject ===

impl Subject {
    /// Of the name by which the API server knows us, if it says; and whether we are the daemon.
    pub fn new(user: Option<String>, is_daemon: bool) -> Self {
        Self { user, is_daemon }
    }

    /// Who asks. A daemon in a cluster is a service account, so that another may be the daemon's.
    pub fn asker(&self) -> Asker {
        let Self { user, is_daemon } = self;
        let account = user.as_deref().is_some_and(|user| user.starts_with(ACCOUNT));
        let name = match user {
            Some(user) => format!("`{user}`"),
            None => "somebody whom the API server does not name".to_owned(),
        };
        Asker { name, is_daemon: *is_daemon || account }
    }

    /// As kubectl wants it.
    fn flag(&self) -> String {
        let user = self.user.as_deref();
        match (user.and_then(|user| user.strip_prefix(ACCOUNT)), user) {
            (Some(account), _) => format!("--serviceaccount={account}"),
            (None, Some(user)) => format!("--user='{}'", user.replace('\'', r"'\''")),
            (None, None) => "--serviceaccount=NAMESPACE:NAME".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    fn subject(user: &str, is_daemon: bool) -> Subject {
        Subject::new(Some(user.to_owned()), is_daemon)
    }

    #[test]
    fn a_missing_right_is_granted_by_two_lines() {
        let subject = subject("system:serviceaccount:n:daemon", false);
        let check = RIGHTS[0].judge("n", &subject, &["patch"]);

        assert_eq!((check.verdict, &*check.found), (Verdict::Fail, "missing: patch"));
        let verbs = "--verb=create,get,list,watch,patch,delete --resource=jobs.batch";
        assert!(check.remedy.contains(verbs), "{}", check.remedy);
        assert!(check.remedy.contains("--serviceaccount=n:daemon"), "{}", check.remedy);
        assert_eq!(check.remedy.lines().count(), 2);
    }

    #[test]
    fn a_right_that_can_be_done_without_is_a_warning_that_says_what_is_lost() {
        let check = RIGHTS[2].judge("n", &Subject::new(None, true), &["list"]);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.found.contains("askers are not told"), "{}", check.found);
    }

    #[test]
    fn a_person_is_named_as_kubectl_does() {
        assert_eq!(subject("it's me", true).flag(), r"--user='it'\''s me'");
    }

    #[test]
    fn what_a_person_may_says_nothing_of_the_daemon() {
        let admin = subject("kubernetes-admin", false);
        for missing in [&[][..], &["patch"]] {
            let check = RIGHTS[0].judge("n", &admin, missing);
            assert_eq!(check.verdict, Verdict::Unknown);
            assert!(check.found.contains("`kubernetes-admin` may"), "{}", check.found);
            let as_the_daemon = "for verb in create get list watch patch delete; do kubectl auth \
                                 can-i $verb jobs.batch -n n --as system:serviceaccount:";
            assert!(check.remedy.starts_with(as_the_daemon), "{}", check.remedy);
        }
        assert_eq!(admin.asker().check("Kubernetes").verdict, Verdict::Unknown);

        // A daemon on somebody's laptop is that person.
        let daemon = subject("kubernetes-admin", true);
        assert_eq!(RIGHTS[0].judge("n", &daemon, &[]).verdict, Verdict::Ok);
        assert_eq!(RIGHTS[0].judge("n", &daemon, &["patch"]).verdict, Verdict::Fail);
        assert_eq!(daemon.asker().check("Kubernetes").verdict, Verdict::Ok);
    }
}
