package discovery

import (
	"strings"
	"testing"
)

// A task that an answer shows before it runs does not get the verdict of the task before it.
func TestRelaunchedTaskIsJudgedAnew(t *testing.T) {
	const uuid = "0f3bc0de-0000-11e6-a544-0853d77d8801"
	answer := func(task string) string {
		return `{"apps":[{"id":"/web","instances":1,"version":"2024-05-01T09:00:00.000Z","versionInfo":{"lastScalingAt":"2024-05-01T09:00:00.000Z","lastConfigChangeAt":"2024-05-01T09:00:00.000Z"},"portDefinitions":[{"port":10001,"protocol":"tcp"}],"healthChecks":[{"protocol":"HTTP","path":"/","portIndex":0}],"tasks":[{"id":"web.instance-` +
			uuid + `._app.` + task + `,"host":"agent1","version":"2024-05-01T09:00:00.000Z","ipAddresses":[]}]}]}`
	}
	first := `1","state":"TASK_RUNNING","startedAt":"2024-05-01T09:00:01.000Z","ports":[31001],"healthCheckResults":[{"alive":true}]`
	running := `2","state":"TASK_RUNNING","startedAt":"2024-05-01T10:00:12.000Z","ports":[31002]`
	event := `{"eventType":"status_update_event","timestamp":"2024-05-01T10:00:12.000Z","taskId":"web.instance-` + uuid +
		`._app.2","taskStatus":"TASK_RUNNING","appId":"/web","host":"agent1","ports":[31002],"ipAddresses":[],"version":"2024-05-01T09:00:00.000Z"}`
	for name, told := range map[string]func(p *picture) error{
		"by-an-event":   func(p *picture) error { return p.event(event) },
		"by-the-answer": func(p *picture) error { return p.answer(answer(running)) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPicture("1.11.0")
			if err := p.answer(answer(first)); err != nil {
				t.Fatal(err)
			}
			p.attached()
			if err := p.answer(answer(`2","state":"TASK_STAGING","ports":[31002]`)); err != nil {
				t.Fatal(err)
			}
			if err := told(p); err != nil {
				t.Fatal(err)
			}
			want := "/web#0 port 10001\n  web.instance-" + uuid + "._app.2 10.1.0.1:31002 running unknown\n"
			if got := p.String(); got != want {
				t.Errorf("served:\n%swant:\n%s", got, want)
			}
		})
	}
}

// What was said of an instance before a stream ended keeps its order behind it: the task
// that runs after a kill is not the killed one.
func TestRelaunchedTaskIsServedAfterANewStream(t *testing.T) {
	const uuid = "0f3bc0de-0000-11e6-a544-0853d77d8801"
	status := func(n, at, state string) string {
		return `{"eventType":"status_update_event","timestamp":"2024-05-01T10:00:` + at + `.000Z","taskId":"web.instance-` + uuid + `._app.` + n +
			`","taskStatus":"TASK_` + state + `","appId":"/web","host":"agent1","ports":[3100` + n + `],"ipAddresses":[],"version":"2024-05-01T09:00:00.000Z"}`
	}
	answer := func(n, started string) string {
		return `{"apps":[{"id":"/web","instances":1,"version":"2024-05-01T09:00:00.000Z","versionInfo":{"lastScalingAt":"2024-05-01T09:00:00.000Z","lastConfigChangeAt":"2024-05-01T09:00:00.000Z"},"portDefinitions":[{"port":10001,"protocol":"tcp"}],"tasks":[{"id":"web.instance-` +
			uuid + `._app.` + n + `","host":"agent1","state":"TASK_RUNNING","startedAt":"2024-05-01T` + started + `.000Z","version":"2024-05-01T09:00:00.000Z","ports":[3100` + n + `],"ipAddresses":[]}]}]}`
	}
	for name, steps := range map[string][]string{
		"heard-of-both":       {status("1", "10", "KILLING"), status("1", "11", "KILLED"), status("2", "12", "RUNNING"), "stream", answer("2", "10:00:12")},
		"answer-has-the-next": {status("1", "10", "KILLING"), "stream", answer("2", "10:00:12"), "stream", answer("2", "10:00:12")},
		"killed-then-twice":   {status("1", "10", "KILLING"), status("1", "11", "KILLED"), "stream", answer("2", "10:00:12"), "stream", status("2", "20", "RUNNING")},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPicture("1.11.0")
			if err := p.answer(answer("1", "09:00:01")); err != nil {
				t.Fatal(err)
			}
			for _, step := range steps {
				var err error
				switch {
				case step == "stream":
					p.attached()
				case strings.HasPrefix(step, `{"apps"`):
					err = p.answer(step)
				default:
					err = p.event(step)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			want := "/web#0 port 10001\n  web.instance-" + uuid + "._app.2 10.1.0.1:31002 running nochecks\n"
			if got := p.String(); got != want {
				t.Errorf("served:\n%swant:\n%s", got, want)
			}
		})
	}
}
