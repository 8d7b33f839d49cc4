use serde_json::json;

use super::*;

#[track_caller]
fn check(template: &str, expected: &str) {
    let data = json!({
        "Id": "sha256:abc", "RepoTags": ["a:1", "b:2"], "Size": 7, "None": null, "Empty": [],
        "Config": {"Env": ["PATH=/bin", "A=b"], "Labels": {"x.y": "1", "z": "2"}, "Cmd": ["sh", "-c"]},
        "Layers": [{"N": 1}, {"N": 2}, {"N": 3}],
    });
    let zeros = Zeros::from([("User", "".into()), ("Volumes", json!({}))]);
    let shown = match Template::parse(template).and_then(|template| template.render(&data, &zeros)) {
        Ok(text) => text,
        Err(error) => format!("error: {error}"),
    };
    assert_eq!(shown, expected, "{template}");
}

#[test]
fn fields_literals_and_pipelines() {
    for (template, expected) in [
        ("{{.Id}} {{.ID}}", "sha256:abc sha256:abc"),
        ("{{.Config.Env}}", "[PATH=/bin A=b]"),
        ("{{json .Config.Env}}", r#"["PATH=/bin","A=b"]"#),
        ("{{.Config.Labels}}", "map[x.y:1 z:2]"),
        ("{{.None}} {{.None.Deeper}}", "<no value> <no value>"),
        ("[{{.Config.User}}] {{.Config.Volumes}}", "[] map[]"),
        ("{{index .RepoTags 0}} {{index .Config.Labels \"x.y\"}}", "a:1 1"),
        ("{{index .Config.Labels \"absent\"}}", ""),
        ("{{join .RepoTags \", \"}}", "a:1, b:2"),
        ("{{.RepoTags | len | printf \"%03d\"}}", "002"),
        ("{{upper (index .RepoTags 1)}} {{title \"one two\"}}", "B:2 One Two"),
        ("{{(index .Layers 1).N}}", "2"),
        ("{{slice .Id 7}} {{slice .Id 7 9}}", "abc ab"),
        ("{{printf \"%-5s|%5.1f|%q|%v\" \"ab\" .Size \"c\" .Empty}}", "ab   |  7.0|\"c\"|[]"),
        ("{{`raw`}} {{\"t\\tq\\\"\"}} {{'A'}} {{1.5}} {{true}} {{nil | not}}", "raw t\tq\" 65 1.5 true true"),
        ("{{split \"a/b\" \"/\"}} {{truncate .Id 6}} {{pad \"x\" 1 2}}.", "[a b] sha256  x  ."),
        (
            "{{$}}{{/* nothing */}}",
            "map[Config:map[Cmd:[sh -c] Env:[PATH=/bin A=b] Labels:map[x.y:1 z:2]] Empty:[] Id:sha256:abc Layers:[map[N:1] map[N:2] map[N:3]] None:<nil> RepoTags:[a:1 b:2] Size:7]",
        ),
    ] {
        check(template, expected);
    }
}

#[test]
fn blocks() {
    for (template, expected) in [
        ("{{if .Empty}}a{{else if eq .Size 7 8}}b{{else}}c{{end}}", "b"),
        ("{{if and .Id (not .None)}}yes{{end}}", "yes"),
        ("{{range .RepoTags}}<{{.}}>{{else}}none{{end}}{{range .Empty}}x{{else}}none{{end}}", "<a:1><b:2>none"),
        ("{{range $i, $tag := .RepoTags}}{{if $i}},{{end}}{{$tag}}@{{$.Size}}{{end}}", "a:1@7,b:2@7"),
        ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "x.y=1;z=2;"),
        ("{{range .Layers}}{{if eq .N 2}}{{continue}}{{end}}{{.N}}{{end}}", "13"),
        ("{{range .Layers}}{{if gt .N 1}}{{break}}{{end}}{{.N}}{{end}}", "1"),
        ("{{with .Config}}{{index .Cmd 0}}{{end}}{{with .None}}x{{else}}none{{end}}", "shnone"),
        ("{{$n := 0}}{{range .Layers}}{{$n = .N}}{{end}}{{$n}}", "3"),
        ("a {{- .Size -}} b\n  {{- \"c\" }}", "a7bc"),
        ("{{range .Config.Env}}{{println .}}{{end}}", "PATH=/bin\nA=b\n"),
    ] {
        check(template, expected);
    }
}

#[test]
fn faults_are_named() {
    for (template, expected) in [
        ("{{.Foo}}", "there is no field `Foo`: there are Config, Empty, Id, Layers, None, RepoTags, Size"),
        ("{{.Id.X}}", "can't take field `X` of `sha256:abc`"),
        ("{{index .RepoTags 5}}", "index out of range: 5 of 2"),
        ("{{if .Id}}", "{{if}} has no {{end}}"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{.Id", "an action has no closing `}}`"),
        ("{{}}", "missing value for command: `{{}}` is empty"),
        ("{{.Id |}}", "missing value for command"),
        ("{{$x}}", "undefined variable `$x`"),
        ("{{template \"x\"}}", "{{template}} is not supported: write one template"),
        ("{{(.Id}}", "unclosed left parenthesis"),
        ("{{\"abc}}", "a string has no closing quote"),
        ("{{eq 1 \"a\"}}", "incompatible types for comparison: `1` and `a`"),
        ("{{.Id .Size}}", "can't give argument `7` to a value"),
        ("{{break}}", "{{break}} outside of {{range}}"),
        ("{{printf \"%z\" 1}}", "printf: the verb `%z` is not supported"),
        ("{{join .Id \",\"}}", "`join` cannot be called with (sha256:abc, ,)"),
        ("{{range .Size}}{{end}}", "range can't iterate over 7"),
    ] {
        check(template, &format!("error: {expected}"));
    }
    let Err(TemplateError(unknown)) = Template::parse("{{frobnicate .}}") else { panic!("there is no such function") };
    assert!(unknown.starts_with("function `frobnicate` is not defined: there are and, or"), "{unknown}");
    assert!(Template::parse(&"{{(".repeat(500)).is_err());
    assert!(Template::parse(&"{{if 1}}".repeat(500)).is_err());
}
