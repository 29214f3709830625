//! Lists in pages.

use std::collections::BTreeMap;
use std::ops::Bound;

use tonic::Status;

use super::name::Name;

/// How many resources a page lists, unless fewer are asked for.
const PAGE: usize = 1000;

/// Part of a list.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub items: Vec<T>,
    /// Where the next page begins; empty: there is none.
    pub next: String,
}

/// What a table has of a project, past the id that a page token names.
pub(super) fn of_project<'a, T>(
    table: &'a BTreeMap<Name, T>,
    project: String,
    token: &str,
) -> impl Iterator<Item = &'a T> + use<'a, T> {
    let after = Name { project: project.clone(), id: token.to_owned() };
    table
        .range((Bound::Excluded(after), Bound::Unbounded))
        .take_while(move |(name, _)| name.project == project)
        .map(|(_, found)| found)
}

/// Cuts a page off a list; `token` names the last item of it for who asks for the next.
pub(super) fn page<T>(
    mut found: impl Iterator<Item = T>,
    size: i32,
    token: impl FnOnce(&T) -> String,
) -> Result<Page<T>, Status> {
    let size = match usize::try_from(size) {
        Err(_) => {
            let text = format!("invalid page size given (page_size={size}): expected 0 or more");
            return Err(Status::invalid_argument(text));
        }
        Ok(0) => PAGE,
        Ok(size) => size.min(PAGE),
    };
    let items: Vec<T> = found.by_ref().take(size).collect();
    let next = match (found.next(), items.last()) {
        (Some(_), Some(last)) => token(last),
        (None, _) | (_, None) => String::new(),
    };
    Ok(Page { items, next })
}
