"""Checks a Heat template on stdin with Heat's own engine.

Nothing is asked of a cloud: strict validation, which looks whether a network or
an image of that name exists, is off. The rest is what `openstack stack create`
checks before it makes anything: syntax, functions, references, parameters and
the property schemas of every resource.
"""
import logging
import sys
import warnings

from oslo_config import cfg

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
cfg.CONF([], project="heat")

from heat.common import context, template_format  # noqa: E402
from heat.engine import environment, resource, resources, stack, template  # noqa: E402

resources.initialise()
resource.Resource._validate_service_availability = classmethod(lambda *_: None)
source = template_format.parse(sys.stdin.read())
hidden = {name: "x" for name, p in source["parameters"].items() if "default" not in p}
parsed = template.Template(source, env=environment.Environment({"parameters": hidden}))
checked = stack.Stack(context.RequestContext(project_id="p", is_admin=True), "check", parsed, strict_validate=False)
checked.validate(validate_res_tmpl_only=True)
print(len(checked.resources), "resources")
