//! How the page looks in a real browser.

use serde_json::json;
use tollgate_local::stack::{ALICE, wait_for};

use super::{LONG, busy, failing, get, plant};
use crate::harness::browser::{Browser, Window};
use crate::harness::{Edge, SOON};

/// Returns what is wrong with how the page looks: what is wider than the window, and text that is hard to read.
const LOOK: &str = r"
    const seen = element => !element.closest('.unseen, thead, head, svg') && element.getClientRects().length > 0;
    const name = element => element.tagName + '.' + (element.getAttribute('class') || '') + ' ' + element.textContent.slice(0, 60);
    const parts = colour => (colour.match(/[\d.]+/g) || []).map(Number);
    const over = (top, below) => {
        const alpha = top.length > 3 ? top[3] : 1;
        return [0, 1, 2].map(i => top[i] * alpha + below[i] * (1 - alpha));
    };
    const ground = element => {
        if (!element) return matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
        const own = parts(getComputedStyle(element).backgroundColor);
        return own.length > 3 && own[3] === 0 ? ground(element.parentElement) : over(own, ground(element.parentElement));
    };
    const light = rgb => {
        const [r, g, b] = rgb.map(c => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const wide = [], faint = [];
    let texts = 0;
    for (const element of document.body.querySelectorAll('*')) {
        if (!seen(element)) continue;
        const box = element.getBoundingClientRect();
        if (box.left < -0.5 || box.right > innerWidth + 0.5 || element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0 && getComputedStyle(element).display !== 'inline') wide.push(name(element));
        const speaks = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!speaks) continue;
        texts += 1;
        const below = ground(element);
        const [a, b] = [light(over(parts(getComputedStyle(element).color), below)), light(below)];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) faint.push(contrast.toFixed(2) + ' ' + name(element));
    }
    const unnamed = [...document.querySelectorAll('svg')].filter(svg => !svg.getAttribute('aria-label')).length;
    const headless = [...document.querySelectorAll('table')].filter(table => !table.querySelector('th[scope=col]')).length;
    return {width: innerWidth, scroll: document.documentElement.scrollWidth, ground: ground(document.body).join(), texts, wide, faint,
        unnamed, headless, landmarks: document.querySelectorAll('header, main, footer').length,
        headings: document.querySelectorAll('h1').length, images: document.images.length};
";

/// Looks at the page as it is now, at each width and in each scheme.
async fn look_at(browser: &Browser, edge: &Edge, state: &str) {
    let url = format!("{}/?refresh=off", edge.stack.tollgate.admin_url());
    let mut grounds = Vec::new();
    for (width, height) in [(360, 800), (1280, 900)] {
        for (dark, scheme) in [(false, "light"), (true, "dark")] {
            let _ = browser.requests().await;
            browser.open(&url, Window { width, height, dark }).await;
            let picture = browser.picture(&format!("{state}-{width}-{scheme}")).await;
            let found = browser.run(LOOK).await;
            let what = format!("{state}, {width} px, {scheme} ({}): {found}", picture.display());
            assert_eq!((&found["width"], &found["scroll"]), (&json!(width), &json!(width)), "{what}");
            assert!(found["texts"].as_u64().is_some_and(|texts| texts > 30), "{what}");
            for nothing in ["wide", "faint"] {
                assert_eq!(found[nothing], json!([]), "{nothing}: {what}");
            }
            for none in ["unnamed", "headless", "images"] {
                assert_eq!(found[none], 0, "{none}: {what}");
            }
            assert_eq!((&found["headings"], &found["landmarks"]), (&json!(1), &json!(3)), "{what}");
            assert_eq!(browser.complaints().await, Vec::<String>::new(), "{what}");
            let requests = browser.requests().await;
            let others: Vec<&String> =
                requests.iter().filter(|asked| **asked != url && !asked.starts_with("data:")).collect();
            assert!(others.is_empty() && requests.contains(&url), "{what}: {requests:?}");
            grounds.push(found["ground"].clone());
        }
    }
    assert_eq!((&grounds[0], &grounds[1]), (&grounds[2], &grounds[3]));
    assert_ne!(grounds[0], grounds[1], "dark is another scheme than light");
}

#[tokio::test]
async fn a_browser_shows_every_state_on_a_phone_and_on_a_desk_in_light_and_in_dark() {
    let Some(browser) = Browser::start().await else { return };
    let empty = Edge::start().await;
    look_at(&browser, &empty, "empty").await;
    empty.finish().await;

    let busy = busy().await;
    look_at(&browser, &busy, "busy").await;
    busy.finish().await;

    let failing = failing().await;
    plant(&failing, LONG, &"y".repeat(256), "rejected", &format!("status 422: {}", "z".repeat(490))).await;
    plant(&failing, "tsk-\u{202e}gpj", r#""><script>alert(1)</script>"#, "held", "").await;
    look_at(&browser, &failing, "failing").await;
    failing.stack.kill_hard().await;

    let off = Edge::with(&[("RUNMESH_BILLING_BASE_URL", "")]).await;
    look_at(&browser, &off, "off").await;
    off.finish_unbilled().await;
}

#[tokio::test]
async fn a_browser_keeps_the_page_current_by_itself() {
    let Some(browser) = Browser::start().await else { return };
    let edge = Edge::start().await;
    let window = Window { width: 1280, height: 900, dark: false };
    browser.open(&format!("{}/", edge.stack.tollgate.admin_url()), window).await;
    let headline = async || browser.run("return document.querySelector('.verdict').textContent").await;
    assert!(headline().await.as_str().is_some_and(|said| said.contains("No request has come yet")));
    assert_eq!(get(&edge, "/api/v1/workers", ALICE.token).await, 200);
    let told = wait_for("the page to come again", SOON, async || {
        let said = headline().await;
        said.as_str().is_some_and(|said| said.contains("1 request was let through")).then_some(())
    });
    told.await.expect("within ten seconds");
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    edge.finish().await;
}
