"""SASRec's loss against scikit-learn's."""

import numpy as np
from absl.testing import absltest
from sklearn import metrics

from tests.agents import checks


class SasrecTest(absltest.TestCase):
  def test_loss_is_log_loss_of_the_responses(self):
    made = checks.made("sasrec")
    _, _, params, catalogue, observation = made
    step = checks.transition(observation)
    state = checks.state(params, catalogue, observation)
    scores = checks.item_logits(params, catalogue, state)[step.slate]
    scores = scores + params["items"]["params"]["response_bias"]
    want = metrics.log_loss(step.response, 1 / (1 + np.exp(-scores)))
    loss, _ = checks.losses(made, params, step)
    np.testing.assert_allclose(loss, want, rtol=1e-4)


if __name__ == "__main__":
  absltest.main()
