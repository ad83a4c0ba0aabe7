//! The first bytes of a result post → the ids it names. Pure.
//!
//! Check sees a JSON prefix, cut anywhere. Real workers write `task_id` first and `worker_id` after the possibly huge
//! `result`, so the task is nearly always there and the worker often is not.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::route::is_id;

/// The ids found before the cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResultIds {
    pub task_id: Option<String>,
    pub worker_id: Option<String>,
}

/// Reads the top-level `task_id` and `worker_id` as far as the prefix goes. What is no id is not there.
#[must_use]
pub fn parse(prefix: &[u8]) -> ResultIds {
    let mut ids = ResultIds::default();
    // The error is the cut, or a body that FlowMesh will refuse itself; what was read before it stays.
    let _ = serde_json::Deserializer::from_slice(prefix).deserialize_map(Collect(&mut ids));
    ids.task_id = ids.task_id.filter(|id| is_id(id));
    ids.worker_id = ids.worker_id.filter(|id| is_id(id));
    ids
}

struct Collect<'a>(&'a mut ResultIds);

impl<'de> Visitor<'de> for Collect<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "task_id" => self.0.task_id = Some(map.next_value()?),
                "worker_id" => self.0.worker_id = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODY: &str =
        r#"{"task_id":"tsk-1","metadata":{"task_id":"tsk-x"},"result":{"big":[1,2]},"worker_id":"wrk-9"}"#;

    fn ids(task: Option<&str>, worker: Option<&str>) -> ResultIds {
        ResultIds { task_id: task.map(str::to_owned), worker_id: worker.map(str::to_owned) }
    }

    #[test]
    fn a_whole_body_names_both() {
        assert_eq!(parse(BODY.as_bytes()), ids(Some("tsk-1"), Some("wrk-9")));
    }

    #[test]
    fn a_cut_anywhere_leaves_what_came_before_it_and_never_half_an_id() {
        for cut in 0..BODY.len() {
            let found = parse(&BODY.as_bytes()[..cut]);
            assert!(matches!(found.task_id.as_deref(), None | Some("tsk-1")), "{cut}: {found:?}");
            assert!(matches!(found.worker_id.as_deref(), None | Some("wrk-9")), "{cut}: {found:?}");
            assert_eq!(found.task_id.is_some(), cut >= r#"{"task_id":"tsk-1""#.len(), "{cut}");
        }
    }

    #[test]
    fn what_is_no_object_or_no_id_names_nothing() {
        for body in [
            &b""[..],
            b"[]",
            b"\"tsk-1\"",
            b"<html>",
            b"{\"task_id\":7}",
            b"{\"task_id\":\"a/b\"}",
            b"{\"task_id\":\"\"}",
        ] {
            assert_eq!(parse(body), ids(None, None), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn a_deep_body_does_not_exhaust_the_stack() {
        let body = format!("{{\"task_id\":\"tsk-1\",\"a\":{}", "[".repeat(4096));
        assert_eq!(parse(body.as_bytes()), ids(Some("tsk-1"), None));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..256)) {
            let found = parse(&body);
            prop_assert!(found.task_id.is_none_or(|id| is_id(&id)));
        }
    }
}
