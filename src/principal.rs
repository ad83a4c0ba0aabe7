//! Who a token belongs to, and what lum.id's scopes mean to FlowMesh. Pure.

/// The owner of a token, as lum.id names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// lum.id's `sub`: visible ASCII, so that it can be a header value.
    pub id: String,
    /// Where bills go; without one, charges are held.
    pub email: Option<String>,
    /// FlowMesh scopes, space-separated, in lum.id's order; empty when none applies.
    pub scopes: String,
}

/// FlowMesh's own scope vocabulary; scopes outside it are dropped.
const VOCABULARY: [&str; 18] = [
    "*",
    "workflows:read",
    "workflows:write",
    "workflows:submit",
    "workflows:cancel",
    "tasks:read",
    "results:read",
    "results:write",
    "nodes:read",
    "nodes:write",
    "workers:read",
    "workers:write",
    "workers:register",
    "workers:manage",
    "guardians:register",
    "principals:manage",
    "system:read",
    "system:metrics",
];

/// Translates lum.id scopes into FlowMesh's: `*`, `flowmesh:*` and `flowmesh:admin` become `*`,
/// `flowmesh:<resource>:<verb>` loses its prefix when it is in FlowMesh's vocabulary, anything else is dropped.
#[must_use]
pub fn flowmesh_scopes<'a>(lum_id_scopes: impl IntoIterator<Item = &'a str>) -> String {
    let mut scopes: Vec<&str> = Vec::new();
    for scope in lum_id_scopes {
        let translated = match scope {
            "*" | "flowmesh:*" | "flowmesh:admin" => "*",
            other => match other.strip_prefix("flowmesh:") {
                Some(own) if VOCABULARY.contains(&own) => own,
                _ => continue,
            },
        };
        if !scopes.contains(&translated) {
            scopes.push(translated);
        }
    }
    scopes.join(" ")
}

#[cfg(test)]
mod tests {
    use super::flowmesh_scopes;

    #[test]
    fn wildcards_and_admin_become_the_flowmesh_wildcard_once() {
        assert_eq!(flowmesh_scopes(["*", "flowmesh:*", "flowmesh:admin"]), "*");
    }

    #[test]
    fn flowmesh_scopes_lose_their_prefix_and_keep_their_order() {
        assert_eq!(
            flowmesh_scopes(["flowmesh:workflows:submit", "flowmesh:tasks:read", "flowmesh:system:metrics"]),
            "workflows:submit tasks:read system:metrics"
        );
    }

    #[test]
    fn scopes_of_other_services_and_unknown_ones_are_dropped() {
        assert_eq!(
            flowmesh_scopes(["lumilake:*", "qa:read", "tasks:read", "flowmesh:tasks:delete", "flowmesh:", ""]),
            ""
        );
    }
}
