//! Pages of lists.

use std::collections::BTreeMap;
use std::ops::Bound;

use tonic::Status;

use super::name::ResourceName;

/// The size of a page, unless the client asks for a smaller one.
const PAGE_SIZE: usize = 1000;

/// A part of a list.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub items: Vec<T>,
    /// The token of the next page; empty for the last page.
    pub next_token: String,
}

/// The items of a project in a table, after the id that is the page token.
pub(super) fn items_in_project<'a, T>(
    table: &'a BTreeMap<ResourceName, T>,
    project: String,
    token: &str,
) -> impl Iterator<Item = &'a T> + use<'a, T> {
    let after = ResourceName { project: project.clone(), id: token.to_owned() };
    table
        .range((Bound::Excluded(after), Bound::Unbounded))
        .take_while(move |(name, _)| name.project == project)
        .map(|(_, item)| item)
}

/// The first page of a list. `token` makes the token of the next page from the last item of this
/// one.
pub(super) fn first_page<T>(
    mut items: impl Iterator<Item = T>,
    size: i32,
    token: impl FnOnce(&T) -> String,
) -> Result<Page<T>, Status> {
    let size = match usize::try_from(size) {
        Err(_) => {
            let text = format!("invalid page size (page_size={size}): expected 0 or more");
            return Err(Status::invalid_argument(text));
        }
        Ok(0) => PAGE_SIZE,
        Ok(size) => size.min(PAGE_SIZE),
    };
    let page: Vec<T> = items.by_ref().take(size).collect();
    let next_token = match (items.next(), page.last()) {
        (Some(_), Some(last)) => token(last),
        (None, _) | (_, None) => String::new(),
    };
    Ok(Page { items: page, next_token })
}
