//! The two forms in which `/metrics` speaks: OpenMetrics for who asks for it, as Prometheus does, and Prometheus's older
//! text format for everybody else, such as `promtool check metrics`.

use std::collections::HashMap;

use axum::http::{HeaderMap, header};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The content type and the text of these registries for who sent these headers.
///
/// # Errors
/// When a family cannot be written.
pub fn write<'a>(
    registries: impl IntoIterator<Item = &'a Registry>,
    headers: &HeaderMap,
) -> Result<(&'static str, String), std::fmt::Error> {
    let mut text = String::new();
    for registry in registries {
        encode_registry(&mut text, registry)?;
    }
    encode_eof(&mut text)?;
    if wants_openmetrics(headers) { Ok((OPENMETRICS, text)) } else { Ok((TEXT, older(&text))) }
}

/// Whether it is asked for by name; who takes anything is given what anything can read.
fn wants_openmetrics(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
            named && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0"))
        })
}

/// OpenMetrics in the older format: there, `# TYPE` and `# HELP` name a counter as its sample does, and an info is a gauge.
fn older(openmetrics: &str) -> String {
    let described = |line: &'_ str, what: &str| {
        line.strip_prefix(what)
            .and_then(|rest| rest.split_once(' '))
            .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
    };
    let kinds: HashMap<String, String> = openmetrics.lines().filter_map(|line| described(line, "# TYPE ")).collect();
    let (mut text, mut name_of) = (String::with_capacity(openmetrics.len()), HashMap::new());
    for (name, kind) in &kinds {
        let suffix = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        name_of.insert(name.as_str(), format!("{name}{suffix}"));
    }
    for line in openmetrics.lines() {
        if let Some((name, help)) = described(line, "# HELP ") {
            let name = name_of.get(name.as_str()).unwrap_or(&name);
            text.push_str(&format!("# HELP {name} {help}\n"));
        } else if let Some((name, kind)) = described(line, "# TYPE ") {
            let name = name_of.get(name.as_str()).unwrap_or(&name);
            let kind = match kind.as_str() {
                "info" => "gauge",
                "unknown" => "untyped",
                kind => kind,
            };
            text.push_str(&format!("# TYPE {name} {kind}\n"));
        } else if line != "# EOF" && !line.starts_with("# UNIT ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::info::Info;

    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        registry.register("x_posts", "Posts", Counter::<u64>::default());
        registry.register("x_open", "Open", Gauge::<i64>::default());
        registry.register("x_build", "Build", Info::new([("version", "1")]));
        registry
    }

    fn written(accept: &[&str]) -> (&'static str, String) {
        let accept = accept.iter().map(|value| (header::ACCEPT, value.parse().expect("valid")));
        write([&registry()], &accept.collect()).expect("written")
    }

    #[test]
    fn prometheus_gets_openmetrics() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for accept in [&[prometheus][..], &["text/plain", "Application/OpenMetrics-Text"]] {
            let (content_type, text) = written(accept);
            assert_eq!(content_type, OPENMETRICS);
            assert!(text.contains("# TYPE x_posts counter\nx_posts_total 0\n") && text.ends_with("# EOF\n"), "{text}");
        }
    }

    #[test]
    fn everybody_else_gets_the_older_format() {
        for accept in [&[][..], &["*/*"], &["text/html,*/*;q=0.8"], &["application/openmetrics-text;q=0,text/plain"]] {
            let (content_type, text) = written(accept);
            assert_eq!(content_type, TEXT);
            let expected = "# HELP x_posts_total Posts.\n# TYPE x_posts_total counter\nx_posts_total 0\n\
                            # HELP x_open Open.\n# TYPE x_open gauge\nx_open 0\n\
                            # HELP x_build_info Build.\n# TYPE x_build_info gauge\nx_build_info{version=\"1\"} 1\n";
            assert_eq!(text, expected);
        }
    }
}
