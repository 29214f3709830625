//! What is written with a template is what is written without.

use super::*;

fn bodies(worlds: &[World]) {
    let templates = Templates::default();
    // The first makes the template, the others fill it.
    for world in worlds.iter().chain(worlds) {
        let body = world.with(|order| templates.body(order)).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body, value(&world.job()));
    }
}

#[test]
fn every_question_to_a_service_is_written_as_its_job() {
    for settings in [
        "",
        "defaults: {queue: main, queue_priority: high}",
        "{running: {tree: 1}, defaults: {memory: {limit: request}, cpus: {limit: 4}}}",
        "defaults: {gpus: {number: 1}, ephemeral_storage: {limit: 9Gi}, environment: {A: \"$\"}}",
    ] {
        let usual = World::new(settings);
        let mut again = World::new(settings).asking("retry_count", "3").asking("forward_logs", "1");
        again.retry = 3;
        again.inputs =
            Inputs { input_values: None, input_manifest: Some("{\"$a\": 1}"), children: None };
        let mut odd = World::new(settings)
            .asking("odd \"\\ name$", "é\u{1}$(HOME)")
            .asking("parent", &format!("octue/{}:1", "a".repeat(80)));
        odd.inputs = Inputs::default();
        let asking = World::new(settings).asking("cpus", "8").asking("memory", "1.5Gi");
        let mut mounted = World::new(settings);
        mounted.inputs.children = Some("[]");
        bodies(&[usual, again, odd, asking, mounted]);
    }
}

#[test]
fn what_is_refused_is_refused_with_a_template_too() {
    let templates = Templates::default();
    World::new("").with(|order| templates.body(order)).unwrap();
    for world in [
        World::new("").asking("cpus", "0"),
        World::new("defaults: {cpus: {cap: 1}}").asking("cpus", "2"),
        World::new("").asking("long", &"x".repeat(ARGUMENT_LIMIT)),
    ] {
        assert_eq!(world.with(|order| templates.body(order)), Err(world.refused()));
    }
}

#[test]
fn settings_that_look_like_a_mark_make_no_template() {
    let settings = "defaults: {environment: {A: \"twined Name\\u0001\"}}";
    bodies(&[World::new(settings), World::new(settings).asking("cpus", "2")]);
}
