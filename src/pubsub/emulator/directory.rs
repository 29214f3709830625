//! Which topics and subscriptions there are, and by which names they go.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use google_cloud_googleapis::pubsub::v1 as google;
use tonic::Status;

use super::name::{self, DELETED_TOPIC, Kind, Name};
use super::page::{Page, of_project, page};
use super::settings::{Settings, TopicSettings};
use super::subscription::{Gone, Subscription};
use super::topic::Topic;

/// All topics and subscriptions. Locks: the tables, then a topic, then a subscription.
#[derive(Debug)]
pub(super) struct Directory {
    /// The one project that all projects are taken for, if they are.
    project: Option<String>,
    tables: RwLock<Tables>,
}

/// What a client asked for, and how it calls it.
pub(super) struct Asked {
    /// The name under which it is kept.
    name: Name,
    /// The project as the client writes it.
    project: String,
    text: String,
    kind: Kind,
}

#[derive(Debug, Default)]
struct Tables {
    topics: BTreeMap<Name, Arc<Topic>>,
    subscriptions: BTreeMap<Name, Placed>,
}

/// A subscription, and the topic that feeds it, unless that was deleted.
#[derive(Clone, Debug)]
struct Placed {
    subscription: Arc<Subscription>,
    topic: Option<Arc<Topic>>,
}

// === impl Directory ===

impl Directory {
    pub fn new(project: Option<String>) -> Self {
        Self { project, tables: RwLock::default() }
    }

    /// Reads a name that a client wrote.
    pub fn asked(&self, kind: Kind, text: &str) -> Result<Asked, name::NameError> {
        let Name { project, id } = Name::parse(kind, text)?;
        let name = Name { project: self.kept(&project), id };
        Ok(Asked { name, project, text: text.to_owned(), kind })
    }

    pub fn create_topic(&self, asked: google::Topic) -> Result<google::Topic, Status> {
        let which = self.asked(Kind::Topic, &asked.name).map_err(invalid)?;
        let settings = TopicSettings::new(asked)?;
        match self.write().topics.entry(which.name.clone()) {
            Entry::Occupied(_) => Err(which.exists()),
            Entry::Vacant(entry) => {
                let topic = entry.insert(Arc::new(Topic::new(which.name, settings)));
                Ok(topic.settings.describe(which.text))
            }
        }
    }

    pub fn topic(&self, text: &str) -> Result<(Arc<Topic>, Asked), Status> {
        let asked = self.asked(Kind::Topic, text).map_err(invalid)?;
        match self.read().topics.get(&asked.name) {
            Some(topic) => Ok((Arc::clone(topic), asked)),
            None => Err(asked.missing()),
        }
    }

    pub fn describe_topic(&self, text: &str) -> Result<google::Topic, Status> {
        let (topic, asked) = self.topic(text)?;
        Ok(topic.settings.describe(asked.text))
    }

    /// Deletes a topic. Its subscriptions stay, with what they have.
    pub fn delete_topic(&self, text: &str) -> Result<(), Status> {
        let asked = self.asked(Kind::Topic, text).map_err(invalid)?;
        let mut tables = self.write();
        let topic = tables.topics.remove(&asked.name).ok_or_else(|| asked.missing())?;
        for name in topic.subscriptions() {
            if let Some(placed) = tables.subscriptions.get_mut(&name) {
                placed.topic = None;
            }
        }
        Ok(())
    }

    pub fn list_topics(
        &self,
        project: &str,
        size: i32,
        token: &str,
    ) -> Result<Page<google::Topic>, Status> {
        let project = name::project(project).map_err(invalid)?;
        let tables = self.read();
        let found = of_project(&tables.topics, self.kept(project), token);
        let described = found.map(|topic| {
            topic.settings.describe(Name::write(Kind::Topic, project, &topic.name.id))
        });
        page(described, size, |last| id_of(&last.name))
    }

    pub fn create_subscription(
        &self,
        asked: google::Subscription,
    ) -> Result<google::Subscription, Status> {
        let which = self.asked(Kind::Subscription, &asked.name).map_err(invalid)?;
        let from = self.asked(Kind::Topic, &asked.topic).map_err(invalid)?;
        let (settings, filter) = Settings::new(asked)?;

        let mut tables = self.write();
        let Tables { topics, subscriptions } = &mut *tables;
        let Entry::Vacant(entry) = subscriptions.entry(which.name.clone()) else {
            return Err(which.exists());
        };
        let topic = topics.get(&from.name).ok_or_else(|| from.missing())?;
        let subscription = Arc::new(Subscription::new(which.name, settings, filter));
        topic.attach(Arc::clone(&subscription));
        let described = subscription.settings.describe(which.text, from.text, false);
        entry.insert(Placed { subscription, topic: Some(Arc::clone(topic)) });
        Ok(described)
    }

    pub fn subscription(&self, text: &str) -> Result<Arc<Subscription>, Status> {
        let asked = self.asked(Kind::Subscription, text).map_err(invalid)?;
        match self.read().subscriptions.get(&asked.name) {
            Some(placed) => Ok(Arc::clone(&placed.subscription)),
            None => Err(asked.missing()),
        }
    }

    pub fn describe_subscription(&self, text: &str) -> Result<google::Subscription, Status> {
        let asked = self.asked(Kind::Subscription, text).map_err(invalid)?;
        let tables = self.read();
        let placed = tables.subscriptions.get(&asked.name).ok_or_else(|| asked.missing())?;
        Ok(self.describe(placed, &asked.project))
    }

    pub fn delete_subscription(&self, text: &str) -> Result<(), Status> {
        let asked = self.asked(Kind::Subscription, text).map_err(invalid)?;
        let removed = self.write().subscriptions.remove(&asked.name);
        let Placed { subscription, topic } = removed.ok_or_else(|| asked.missing())?;
        if let Some(topic) = topic {
            topic.detach(&subscription);
        }
        subscription.end(Gone::Deleted);
        Ok(())
    }

    /// Cuts a subscription off from its topic, and drops its messages.
    pub fn detach_subscription(&self, text: &str) -> Result<(), Status> {
        let asked = self.asked(Kind::Subscription, text).map_err(invalid)?;
        let tables = self.read();
        let placed = tables.subscriptions.get(&asked.name).ok_or_else(|| asked.missing())?;
        if let Some(topic) = &placed.topic {
            topic.detach(&placed.subscription);
        }
        placed.subscription.end(Gone::Detached);
        Ok(())
    }

    pub fn list_subscriptions(
        &self,
        project: &str,
        size: i32,
        token: &str,
    ) -> Result<Page<google::Subscription>, Status> {
        let project = name::project(project).map_err(invalid)?;
        let tables = self.read();
        let found = of_project(&tables.subscriptions, self.kept(project), token);
        let described = found.map(|placed| self.describe(placed, project));
        page(described, size, |last| id_of(&last.name))
    }

    /// The names of a topic's subscriptions.
    pub fn list_topic_subscriptions(
        &self,
        topic: &str,
        size: i32,
        token: &str,
    ) -> Result<Page<String>, Status> {
        let (topic, asked) = self.topic(topic)?;
        let written = |name: Name| {
            let project = self.echo(&name.project, &asked.project);
            Name::write(Kind::Subscription, project, &name.id)
        };
        let mut names: Vec<String> = topic.subscriptions().into_iter().map(written).collect();
        names.sort_unstable();
        page(names.into_iter().filter(|name| token < &**name), size, String::clone)
    }

    pub fn has_subscription(&self, text: &str) -> bool {
        let Ok(asked) = self.asked(Kind::Subscription, text) else { return false };
        self.read().subscriptions.contains_key(&asked.name)
    }

    /// Lets go of everything that is older than its subscription keeps.
    pub fn forget_outdated(&self) {
        for placed in self.read().subscriptions.values() {
            placed.subscription.forget_outdated();
        }
    }

    fn describe(&self, placed: &Placed, project: &str) -> google::Subscription {
        let Placed { subscription, topic } = placed;
        let name = Name::write(Kind::Subscription, project, &subscription.name.id);
        let topic = match topic {
            None => DELETED_TOPIC.to_owned(),
            Some(topic) => {
                let project = self.echo(&topic.name.project, project);
                Name::write(Kind::Topic, project, &topic.name.id)
            }
        };
        subscription.settings.describe(name, topic, subscription.is_detached())
    }

    /// The project under which things of `project` are kept.
    fn kept(&self, project: &str) -> String {
        self.project.as_deref().unwrap_or(project).to_owned()
    }

    /// How to write the project of something to a client of another project.
    fn echo<'a>(&self, kept: &'a str, client: &'a str) -> &'a str {
        if self.project.is_some() { client } else { kept }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().expect("nothing panics while it changes the tables")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().expect("nothing panics while it changes the tables")
    }
}

// === impl Asked ===

impl Asked {
    fn missing(&self) -> Status {
        Status::not_found(format!("{} does not exist (resource={})", self.kind, self.text))
    }

    fn exists(&self) -> Status {
        Status::already_exists(format!("{} already exists (resource={})", self.kind, self.text))
    }
}

pub(super) fn invalid(error: name::NameError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The last part of a full name.
fn id_of(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}
