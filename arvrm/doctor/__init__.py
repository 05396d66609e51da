"""Whether this machine reproduces CALVIN, and whether a policy and demonstrations keep its conventions: one page.

The machine is compared with recordings of the official simulator where there are some, and with the reference that the
package brings. A policy is asked what it would do at the steps of recorded demonstrations; its answers are compared
with the recorded actions, read by each convention that is known to be mixed up.
"""

from arvrm.doctor.examination import DoctorConfig, examine
from arvrm.doctor.findings import Finding
from arvrm.doctor.page import as_json, as_page

__all__ = ["DoctorConfig", "Finding", "as_json", "as_page", "examine"]
