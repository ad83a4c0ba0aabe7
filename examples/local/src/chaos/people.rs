//! Who works with the stack of a round.

use crate::{
    stack::{ALICE, BOB, PAUPER},
    standin::{LumId, Runmesh},
};

/// Tokens of each person: each restart of Tollgate forgets them, and each is looked up by itself.
const TOKENS: usize = 8;

/// Somebody who submits.
pub(super) struct Person {
    pub sub: String,
    pub email: String,
    pub tokens: Vec<String>,
    /// A token that knows the e-mail address, when the others do not.
    pub late: Option<String>,
}

impl Person {
    fn new(name: &str) -> Self {
        let tokens = (0..TOKENS).map(|n| format!("lm_pat_live_{name}-{n}-chaos")).collect();
        Self { sub: format!("user-{name}"), email: format!("{name}@example.com"), tokens, late: None }
    }
}

/// Everybody, made known to lum.id and Runmesh. The last one's e-mail address is known to one token only, and the one
/// before has no money, so that it submits only while Runmesh cannot be asked.
pub(super) fn everybody(lum_id: &LumId, runmesh: &Runmesh) -> Vec<Person> {
    let mut people: Vec<Person> = ["carol", "dave", "mallory"].map(Person::new).into();
    for known in [ALICE, BOB, PAUPER] {
        let mut person = Person::new(known.sub.trim_start_matches("user-"));
        person.tokens.push(known.token.to_owned());
        people.push(person);
    }
    let mut nomail = Person::new("nomail");
    nomail.late = Some("lm_pat_live_nomail-late-chaos".to_owned());
    people.push(nomail);
    for person in &people {
        let email = person.late.is_none().then_some(person.email.as_str());
        for token in &person.tokens {
            lum_id.user(token, &person.sub, email, &["flowmesh:*"]);
        }
        if let Some(late) = &person.late {
            lum_id.user(late, &person.sub, Some(&person.email), &["flowmesh:*"]);
        }
        if person.sub != PAUPER.sub {
            runmesh.set_balance(&person.email, "1000.00");
        }
    }
    people
}
