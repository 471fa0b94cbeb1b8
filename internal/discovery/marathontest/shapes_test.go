package marathontest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// history is what the documents of Marathon look like, as a list of members with
// the versions in which they are there. It is written from Marathon's
// serializers and manual, and is not derived from the simulator in any way. An
// object may have no other member; one without "?" must be there.
//
// Types: str, int, num, bool, null, any, time; [x] a list, {x} a map, @x an object of the list; | alternatives.
const history = `
app
  id                         str
  cmd                        str|null      <1.5
  cmd?                       str           >=1.5
  args                       [str]|null    <1.5
  args?                      [str]         >=1.5
  user                       str|null      <1.5
  user?                      str           >=1.5
  env                        {any}         <1.5
  env?                       {any}         >=1.5
  instances                  int
  cpus                       num
  mem                        num
  disk                       num
  gpus                       int           >=1.3
  executor                   str
  constraints                [[str]]       <1.5
  constraints?               [[str]]       >=1.5
  uris                       [str]         <1.5
  fetch                      [any]         >=1.0 <1.5
  fetch?                     [any]         >=1.5
  storeUrls                  [str]         <1.5
  ports                      [int]         <1.3
  ports?                     [int]         >=1.3 <1.5
  portDefinitions            [@portDef]    >=1.0 <1.3
  portDefinitions?           [@portDef]    >=1.3
  requirePorts               bool          <1.3
  requirePorts?              bool          >=1.3 <1.5
  requirePorts               bool          >=1.5
  backoffSeconds             num
  backoffFactor              num
  maxLaunchDelaySeconds      num
  container                  @container|null <1.5
  container?                 @container    >=1.5
  healthChecks               [@check]      <1.5
  healthChecks?              [@check]      >=1.5
  readinessChecks            [any]         >=1.1 <1.5
  readinessChecks?           [any]         >=1.5
  dependencies               [str]         <1.5
  dependencies?              [str]         >=1.5
  upgradeStrategy            @upgrade
  labels                     {str}
  acceptedResourceRoles      [str]|null    >=0.9 <1.4
  acceptedResourceRoles?     [str]         >=1.4
  ipAddress                  @address|null >=0.14 <1.5
  version                    time
  versionInfo                @versionInfo  >=0.11
  residency                  any           >=1.0 <1.5
  secrets                    {any}         >=1.2 <1.5
  secrets?                   {any}         >=1.5
  taskKillGracePeriodSeconds num|null      >=1.3 <1.5
  networks                   [@network]    >=1.5
  killSelection              str           >=1.4
  unreachableStrategy        any           >=1.4
  role?                      str           >=1.9
posted < app
  versionInfo?               @versionInfo  >=0.11
counted < app
  tasksStaged                int
  tasksRunning               int
  tasksHealthy               int           >=0.8.2
  tasksUnhealthy             int           >=0.8.2
  deployments                [@ref]
full < counted
  tasks                      [@task]
  lastTaskFailure?           @failure
group
  id                         str
  apps                       [@app]
  groups                     [@group]
  pods                       [any]         >=1.4
  dependencies               [str]
  version                    time
ref
  id                         str
upgrade
  minimumHealthCapacity      num
  maximumOverCapacity        num
versionInfo
  lastScalingAt              time
  lastConfigChangeAt         time
portDef
  port                       int
  protocol                   str
  name?                      str
  labels                     {str}         <1.5
  labels?                    {str}         >=1.5
network
  mode                       str
  name?                      str
container
  type                       str
  volumes                    [any]
  docker                     @docker       <1.5
  docker?                    @docker       >=1.5
  portMappings?              [@mapping]    >=1.5
docker
  image                      str
  network                    str           <1.5
  portMappings?              [@mapping]    <1.5
  privileged                 bool
  parameters                 [any]
  forcePullImage             bool          >=0.8.2
mapping
  containerPort              int
  hostPort                   int           <1.1
  hostPort?                  int           >=1.1
  servicePort                int
  protocol                   str
  name?                      str           >=1.0
  labels?                    {str}         >=1.0 <1.2
  labels                     {str}         >=1.2
address
  groups                     [str]
  labels                     {str}
  discovery                  @discovery
  networkName?               str           >=1.1
discovery
  ports                      [@discovered]
discovered
  number                     int
  name                       str
  protocol                   str
check
  path?                      str
  protocol                   str
  portIndex?                 int
  port?                      int           >=0.14
  command?                   {str}|null
  gracePeriodSeconds         int
  intervalSeconds            int
  timeoutSeconds             int
  maxConsecutiveFailures     int
  ignoreHttp1xx              bool          >=0.8.2 <1.5
  ignoreHttp1xx?             bool          >=1.5
  ipProtocol?                str           >=1.6
  delaySeconds               int           >=1.5
task
  id                         str
  appId                      str
  host                       str|null      <0.16
  host                       str           >=0.16
  slaveId                    str|null      >=0.11 <1.6
  slaveId                    str           >=1.6
  ports                      [int]         <1.4
  ports?                     [int]         >=1.4 <1.6
  ports                      [int]         >=1.6
  servicePorts?              [int]         <1.6
  servicePorts               [int]         >=1.6
  stagedAt                   time|null     <1.4
  stagedAt?                  time|null     >=1.4
  startedAt                  time|null     <1.4
  startedAt?                 time|null     >=1.4
  version                    time          <1.4
  version?                   time          >=1.4
  ipAddresses                [@ip]         >=0.14 <1.1
  ipAddresses?               [@ip]         >=1.1 <1.6
  ipAddresses                [@ip]         >=1.6
  state                      str           >=1.3
  healthCheckResults?        [@result|null] <0.9
  healthCheckResults?        [@result]     >=0.9 <1.6
  healthCheckResults         [@result]     >=1.6
  localVolumes               [any]         >=1.6
  region                     str           >=1.6
  zone                       str           >=1.6
  role                       str           >=1.9
ip
  ipAddress                  str
  protocol                   str
result
  alive                      bool
  consecutiveFailures        int
  firstSuccess               time|null     <1.6
  firstSuccess?              time          >=1.6
  lastSuccess                time|null     <1.6
  lastSuccess?               time          >=1.6
  lastFailure                time|null     <1.6
  lastFailure?               time          >=1.6
  lastFailureCause           str|null      >=1.0 <1.6
  lastFailureCause?          str           >=1.6
  taskId                     str           <1.4
  instanceId                 str           >=1.4
failure
  appId                      str
  host                       str
  message                    str
  state                      str
  taskId                     str
  timestamp                  time
  version                    time
info
  name                       str
  version                    str
  buildref                   str           >=1.4
  elected                    bool
  leader                     str
  frameworkId                str
  marathon_config            {any}
  zookeeper_config           {any}
  http_config                {any}
  event_subscriber           any           <1.5
deployment
  id                         str
  version                    time
  affectedApps               [str]
  affectedPods               [str]         >=1.4
  steps                      [[@oldAction]] <1.1
  steps                      [@step]       >=1.1
  currentActions             [@current]
  currentStep                int
  totalSteps                 int
oldAction
  action                     str
  app                        str
step
  actions                    [@action]
action
  type                       str           <1.1.2
  action                     str           >=1.1.2
  app?                       str
  pod?                       str           >=1.4
current
  action                     str           <1.1
  type                       str           >=1.1 <1.1.2
  action                     str           >=1.1.2
  app                        str
  readinessCheckResults      [any]         >=1.1
event
  eventType                  str
  timestamp                  time
status_update_event < event
  slaveId                    str
  taskId                     str
  taskStatus                 str
  message                    str
  appId                      str
  host                       str
  ipAddresses                [@ip]         >=0.14 <1.1
  ipAddresses?               [@ip]         >=1.1 <1.4
  ipAddresses                [@ip]         >=1.4
  ports                      [int]
  version                    time
instance_changed_event < event
  instanceId                 str           >=1.4
  condition                  str           >=1.4
  runSpecId                  str           >=1.4
  agentId                    str           >=1.4 <1.8
  agentId                    str|null      >=1.8
  host                       str           >=1.4 <1.8
  host                       str|null      >=1.8
  runSpecVersion             time          >=1.4
instance_health_changed_event < event
  instanceId                 str           >=1.4
  runSpecId                  str           >=1.4
  healthy                    bool|null     >=1.4
  runSpecVersion             time          >=1.4
unknown_instance_terminated_event < event
  instanceId                 str           >=1.4
  runSpecId                  str           >=1.4
  condition                  str           >=1.4
health_status_changed_event < event
  appId                      str
  taskId                     str           <1.4
  instanceId                 str           >=1.4
  version                    time
  alive                      bool
failed_health_check_event < event
  appId                      str
  taskId                     str           <1.4
  instanceId                 str           >=1.4 <1.5
  taskId                     str           >=1.5
  healthCheck                @check
unhealthy_task_kill_event < event
  appId                      str           >=1.0
  taskId                     str           >=1.0
  version                    time          >=1.0
  reason                     str           >=1.0
  host                       str           >=1.0
  slaveId?                   str           >=1.0
unhealthy_instance_kill_event < unhealthy_task_kill_event
  instanceId                 str           >=1.4
api_post_event < event
  clientIp                   str
  uri                        str
  appDefinition              @posted
group_change_success < event
  groupId                    str
  version                    time
group_change_failed < group_change_success
  reason                     str
plan
  id                         str
  original                   @group        <1.7
  target                     @group        <1.7
  steps                      [@step]
  version                    time
deployment_info < event
  plan                       @plan
  currentStep                @step
deployment_step_success < deployment_info
deployment_step_failure < deployment_info
deployment_success < event
  id                         str
  plan                       @plan         >=0.10
deployment_failed < event
  id                         str
  plan                       @plan         >=0.10
  reason?                    str           >=1.6.590
app_terminated_event < event
  appId                      str
add_health_check_event < event
  appId                      str
  version                    time
  healthCheck                @check
remove_health_check_event < event
  appId                      str
subscribe_event < event
  clientIp                   str
  callbackUrl                str
unsubscribe_event < subscribe_event
event_stream_attached < event
  remoteAddress              str           >=0.9
event_stream_detached < event
  remoteAddress              str           >=0.9
scheduler_registered_event < event
  frameworkId                str
  master                     str
framework_message_event < event
  executorId                 str
  slaveId                    str
  message                    [int]
`

// shape is the members of one kind of object in one version.
type shape map[string]struct {
	kind     string
	optional bool
}

// shapesOf reads history for one version.
func shapesOf(t *testing.T, version string) map[string]shape {
	t.Helper()
	shapes := make(map[string]shape)
	var current shape
	for line := range strings.Lines(history) {
		line = strings.TrimRight(line, "\n")
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case line[0] != ' ':
			current = make(shape)
			if len(fields) == 3 {
				maps.Copy(current, shapes[fields[2]])
			}
			shapes[fields[0]] = current
		default:
			name, optional := strings.CutSuffix(fields[0], "?")
			in := true
			for _, bound := range fields[2:] {
				limit, least := strings.CutPrefix(bound, ">=")
				if !least {
					limit = strings.TrimPrefix(bound, "<")
				}
				in = in && (compareVersions(version, limit) >= 0) == least
			}
			if in {
				current[name] = struct {
					kind     string
					optional bool
				}{fields[1], optional}
			}
		}
	}
	return shapes
}

func compareVersions(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		var x, y int
		if i < len(as) {
			x, _ = strconv.Atoi(as[i])
		}
		if i < len(bs) {
			y, _ = strconv.Atoi(bs[i])
		}
		if x != y {
			return x - y
		}
	}
	return 0
}

// checker compares documents with the shapes of a version.
type checker struct {
	shapes map[string]shape
	lacks  []string // "shape.member" that a recorded document has not
	extra  []string // "shape.member" that a recorded document has besides
	found  []string
}

func (c *checker) fail(path, format string, args ...any) {
	c.found = append(c.found, path+": "+fmt.Sprintf(format, args...))
}

func (c *checker) check(path, kind string, v any) {
	for alternative := range splitTop(kind) {
		sub := &checker{shapes: c.shapes, lacks: c.lacks, extra: c.extra}
		sub.one(path, alternative, v)
		if len(sub.found) == 0 {
			return
		}
		if !strings.Contains(kind, "|") || v != nil && alternative[0] == '@' {
			c.found = append(c.found, sub.found...)
			return
		}
	}
	c.fail(path, "want %s, have %v", kind, v)
}

// splitTop yields the alternatives of a type; those inside a list belong to its elements.
func splitTop(kind string) func(func(string) bool) {
	return func(yield func(string) bool) {
		depth, from := 0, 0
		for i, r := range kind + "|" {
			switch {
			case r == '[' || r == '{':
				depth++
			case r == ']' || r == '}':
				depth--
			case r == '|' && depth == 0:
				if !yield(kind[from:i]) {
					return
				}
				from = i + 1
			}
		}
	}
}

func (c *checker) one(path, kind string, v any) {
	ok := true
	switch kind[0] {
	case '[':
		var list []any
		if list, ok = v.([]any); ok {
			for i, e := range list {
				c.check(fmt.Sprintf("%s[%d]", path, i), kind[1:len(kind)-1], e)
			}
		}
	case '{':
		var m map[string]any
		if m, ok = v.(map[string]any); ok {
			for k, e := range m {
				c.check(path+"."+k, kind[1:len(kind)-1], e)
			}
		}
	case '@':
		var m map[string]any
		if m, ok = v.(map[string]any); ok {
			c.object(path, kind[1:], m)
		}
	default:
		switch kind {
		case "any":
		case "null":
			ok = v == nil
		case "bool":
			_, ok = v.(bool)
		case "str":
			_, ok = v.(string)
		case "time":
			var s string
			s, ok = v.(string)
			ok = ok && len(s) == len(stampForm) && s[10] == 'T' && s[19] == '.' && s[23] == 'Z'
		case "num":
			_, ok = v.(float64)
		case "int":
			var f float64
			f, ok = v.(float64)
			ok = ok && f == float64(int(f))
		default:
			panic("history: no type " + kind)
		}
	}
	if !ok {
		c.fail(path, "want %s, have %v", kind, v)
	}
}

func (c *checker) object(path, name string, m map[string]any) {
	s, ok := c.shapes[name]
	if !ok {
		c.fail(path, "no shape %s", name)
		return
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		member, known := s[k]
		switch {
		case slices.Contains(c.extra, name+"."+k):
		case !known:
			c.fail(path, "unknown member %s of %s", k, name)
		default:
			c.check(path+"."+k, member.kind, m[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s)) {
		if _, there := m[k]; !there && !s[k].optional && !slices.Contains(c.lacks, name+"."+k) {
			c.fail(path, "%s has no member %s", name, k)
		}
	}
}

// TestRecordedDocumentsFitTheHistory anchors history in what real Marathons sent
// and what their manuals show. What a manual leaves out or gets wrong is listed.
func TestRecordedDocumentsFitTheHistory(t *testing.T) {
	dir := fixtures(t)
	oldManual := []string{"app.labels", "app.maximumOverCapacity", "upgrade.maximumOverCapacity", "docker.privileged", "docker.parameters", "mapping.servicePort"}
	under := func(list []string, from, to string) []string {
		var out []string
		for _, l := range list {
			out = append(out, strings.Replace(l, from+".", to+".", 1))
		}
		return out
	}
	for _, f := range []struct {
		file, version, kind string
		lacks, extra        []string
	}{
		{"rest/0.8.0-apps.json", "0.8.0", "{[@counted]}", under(oldManual, "app", "counted"), nil},
		{"rest/0.8.0-app-with-tasks.json", "0.8.0", "{@full}", under(oldManual, "app", "full"), nil},
		{"rest/0.8.0-tasks.json", "0.8.0", "{[@task]}", nil, nil},
		{"rest/0.8.0-app-tasks.json", "0.8.0", "{[@task]}", []string{"task.appId"}, nil},
		{"rest/0.8.0-groups.json", "0.8.0", "@group", oldManual, nil},
		{"rest/0.8.0-info.json", "0.8.0", "@info", []string{"info.elected"}, nil},
		{"rest/0.8.0-eventSubscriptions-get.json", "0.8.0", "{[str]}", nil, nil},
		{"rest/0.8.0-eventSubscriptions-post.json", "0.8.0", "@subscribe_event", []string{"subscribe_event.timestamp"}, nil},
		{"rest/1.1.0-app_list.json", "1.1.0", "{[@counted]}",
			[]string{"counted.fetch", "counted.portDefinitions", "counted.readinessChecks", "counted.ipAddress", "counted.residency"}, nil},
		{"rest/1.1.0-tasks.json", "1.1.0", "{[@task]}", nil, nil},
		{"rest/1.1.0-info.json", "1.1.0", "@info", nil, nil},
		{"rest/1.4.0-deployments.json", "1.4.0", "[@deployment]", nil, nil},
		// Members of list type are left out of the manual's tasks of 1.11.
		{"rest/1.11-tasks.json", "1.11.0", "{[@task]}", []string{"task.healthCheckResults", "task.ipAddresses", "task.localVolumes"}, nil},
		{"rest/1.11-app_tasks.json", "1.11.0", "{[@task]}",
			[]string{"task.healthCheckResults", "task.ipAddresses", "task.localVolumes", "task.servicePorts"}, nil},
		{"rest/1.5.0-info.json", "1.5.0", "@info", []string{"info.buildref"}, []string{"info.event_subscriber"}},
		{"rest/1.11-info.json", "1.11.0", "@info", nil, nil},
		// Real answers. These were edited by hand in "ports" and "portDefinitions"; a container of 1.1 has no network members.
		{"apps-tasks/lb-marathon15_apps.json", "1.5.0", "{[@full]}", nil, nil},
		{"apps/lb-zdd_app_blue_marathon1.5.json", "1.5.0", "{[@full]}", nil, nil},
		{"apps-tasks/lb-zdd_apps.json", "1.1.0", "{[@full]}",
			[]string{"full.ports", "full.portDefinitions", "full.fetch", "full.readinessChecks", "full.residency", "check.ignoreHttp1xx", "result.lastFailureCause", "portDef.labels", "portDef.protocol"}, nil},
		{"rest/real-groups-155_100.json", "1.5.0", "@group", []string{"app.version", "group.version", "group.dependencies", "group.id", "group.pods"}, nil},
	} {
		t.Run(filepath.Base(f.file), func(t *testing.T) {
			raw, err := os.ReadFile(filepath.Join(dir, f.file))
			must(t, err)
			var v any
			must(t, json.Unmarshal(raw, &v))
			c := &checker{shapes: shapesOf(t, f.version), lacks: f.lacks, extra: f.extra}
			c.check("", f.kind, v)
			for _, problem := range c.found {
				t.Error(problem)
			}
		})
	}
}

// TestRecordedEventsFitTheHistory does the same for events.
func TestRecordedEventsFitTheHistory(t *testing.T) {
	dir := fixtures(t)
	// The manuals show old apps, leave the message out, and draw the steps of a plan flat.
	lacks := []string{"status_update_event.message", "status_update_event.ipAddresses", "docker.privileged", "docker.parameters",
		"api_post_event.versionInfo", "upgrade.maximumOverCapacity", "add_health_check_event.version", "check.ignoreHttp1xx", "check.delaySeconds",
		"deployment_success.plan", "deployment_failed.plan", "app.labels", "posted.labels", "posted.maxLaunchDelaySeconds"}
	for _, f := range []struct {
		file, version string
		// Types of which the manual's example is wrong.
		wrong []string
	}{
		{"events/0.8.0-docs.ndjson", "0.8.0", []string{"framework_message_event", "remove_health_check_event", "deployment_info", "deployment_step_success", "deployment_step_failure"}},
		{"events/1.3.0-docs.ndjson", "1.3.0", []string{"framework_message_event", "remove_health_check_event", "deployment_info", "deployment_step_success", "deployment_step_failure", "api_post_event"}},
		{"events/1.11-docs.ndjson", "1.11.0", []string{"framework_message_event", "remove_health_check_event", "deployment_info", "deployment_step_success", "deployment_step_failure",
			"event_stream_attached", "event_stream_detached", "api_post_event", "pod_created_event", "pod_updated_event", "pod_deleted_event"}},
		{"events/1.1.0-sse-stream.txt", "1.1.0", nil},
	} {
		t.Run(filepath.Base(f.file), func(t *testing.T) {
			raw, err := os.ReadFile(filepath.Join(dir, f.file))
			must(t, err)
			checked := 0
			for line := range strings.Lines(string(raw)) {
				line = strings.TrimPrefix(strings.TrimSpace(line), "data: ")
				if !strings.HasPrefix(line, "{") {
					continue
				}
				var v map[string]any
				must(t, json.Unmarshal([]byte(line), &v))
				kind, _ := v["eventType"].(string)
				if slices.Contains(f.wrong, kind) {
					continue
				}
				c := &checker{shapes: shapesOf(t, f.version), lacks: lacks}
				c.check(kind, "@"+kind, v)
				for _, problem := range c.found {
					t.Error(problem)
				}
				checked++
			}
			if checked == 0 {
				t.Error("no event was checked")
			}
		})
	}
}

// TestAnswersAndEventsFitTheHistory runs every version through the life of apps
// of each kind of network and checks every document and every event.
func TestAnswersAndEventsFitTheHistory(t *testing.T) {
	for _, version := range Versions {
		t.Run(version, func(t *testing.T) {
			shapes := shapesOf(t, version)
			check := func(what, kind string, v any) {
				t.Helper()
				c := &checker{shapes: shapes}
				c.check(what, kind, v)
				for _, problem := range c.found {
					t.Error(problem)
				}
			}
			var events []Event
			c := start(t, Options{Version: version, QueueLimit: -1, OnEvent: func(ev Event) { events = append(events, ev) }})
			failures := 1
			for _, spec := range []AppSpec{
				{ID: "/host", Instances: 2, Ports: []Port{{Service: 8000, Name: "http"}, {}}, Labels: map[string]string{"a": "b"},
					HealthChecks: []HealthCheck{{Path: "/"}, {Protocol: "COMMAND", Command: "true"}}},
				{ID: "/shop/bridge", Instances: 1, Network: BridgeNetwork, Image: "nginx", Ports: []Port{{Container: 80, Name: "web", Labels: map[string]string{"x": "y"}}},
					HealthChecks: []HealthCheck{{Protocol: "MESOS_HTTP", MaxConsecutiveFailures: &failures}}},
				{ID: "/shop/own", Instances: 1, Network: ContainerNetwork, Image: "nginx", Ports: []Port{{Container: 80, Unmapped: true}}, ReadinessCheck: true},
				{ID: "/shop/plain", Instances: 1, Members: map[string]any{"env": map[string]any{"P": map[string]any{"secret": "s"}}, "constraints": [][]string{{"hostname", "UNIQUE"}}}},
			} {
				if spec.Network == ContainerNetwork && compareVersions(version, "1.1") < 0 {
					continue // docker had no such network
				}
				must(t, c.Deploy(spec))
			}
			if compareVersions(version, "0.14") >= 0 {
				must(t, c.DeployJSON([]byte(`{"id":"/ip","cmd":"x","ipAddress":{"discovery":{"ports":[{"number":80,"name":"http","protocol":"tcp"}]}}}`)))
			}
			task := c.Tasks("/host")[0].ID
			must(t, c.SetHealth(task, false))
			view := func(app string) {
				t.Helper()
				base := c.URL(0)
				check("apps", "{[@counted]}", get(t, base+"/v2/apps"))
				check("apps with tasks", "{[@full]}", get(t, base+"/v2/apps?embed=apps.tasks&embed=apps.deployments"))
				check("app", "{@full}", get(t, base+"/v2/apps/"+app))
				check("group's apps", "{[@full]}", get(t, base+"/v2/apps//shop/*"))
				check("tasks", "{[@task]}", get(t, base+"/v2/tasks"))
				check("app's tasks", "{[@task]}", get(t, base+"/v2/apps/"+app+"/tasks"))
				check("groups", "@group", get(t, base+"/v2/groups"))
				check("versions", "{[time]}", get(t, base+"/v2/apps/"+app+"/versions"))
				check("info", "@info", get(t, base+"/v2/info"))
				check("leader", "{str}", get(t, base+"/v2/leader"))
				check("deployments", "[@deployment]", get(t, base+"/v2/deployments"))
			}
			view("/host")
			must(t, c.KillUnhealthy(task))
			must(t, c.Fail(c.Tasks("/host")[0].ID))
			must(t, c.Unreachable(c.Tasks("/shop/plain")[0].ID))
			if compareVersions(version, "1.4") >= 0 {
				task := c.Tasks("/shop/plain")[0].ID
				must(t, c.Inactive(task))
				view("/host")
				must(t, c.Expunge(task))
			}
			view("/host")
			must(t, c.Restart("/shop/bridge"))
			must(t, c.SetLabels("/host", map[string]string{"c": "d"}))
			c.opts.HealthDelay = -1 // the next deployment stays open
			must(t, c.Restart("/host"))
			view("/host")
			must(t, c.Delete("/host"))
			must(t, c.Delete("/shop/plain"))
			must(t, c.Elect(-1))
			must(t, c.Elect(0))
			view("/shop/bridge")
			c.mu.Lock()
			defer c.mu.Unlock()
			seen := make(map[string]bool)
			for _, ev := range events {
				whole := ev.JSON
				var v map[string]any
				if ev.heavy != nil { // there is a choice: the light form lacks the groups
					must(t, json.Unmarshal(ev.JSON, &v))
					light := &checker{shapes: shapes, lacks: []string{"plan.original", "plan.target"}}
					light.check(ev.Type, "@"+ev.Type, v)
					if len(light.found) > 0 || v["plan"].(map[string]any)["original"] != nil {
						t.Errorf("light %s: %v: %s", ev.Type, light.found, ev.JSON)
					}
					whole = ev.heavy
				}
				v = nil
				must(t, json.Unmarshal(whole, &v))
				check(ev.Type, "@"+ev.Type, v)
				seen[ev.Type] = true
			}
			for _, want := range []string{"status_update_event", "api_post_event", "group_change_success", "deployment_info", "deployment_success",
				"deployment_failed", "app_terminated_event", "health_status_changed_event", "failed_health_check_event", "scheduler_registered_event"} {
				if !seen[want] {
					t.Errorf("no %s was published", want)
				}
			}
			if instances := compareVersions(version, "1.4") >= 0; seen["instance_changed_event"] != instances || seen["instance_health_changed_event"] != instances {
				t.Errorf("instance events %v: want them from 1.4 on", slices.Sorted(maps.Keys(seen)))
			}
		})
	}
}
