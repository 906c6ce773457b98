import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics

from tests import toy
from tests.agents import checks


class SasrecTest(parameterized.TestCase):
  @parameterized.parameters("features", "free")
  def test_greedy_slate_is_the_exact_top(self, item_logits):
    made = checks.made("sasrec", item_logits=item_logits)
    _, params, catalogue, observation = made
    state = checks.state(params, catalogue, observation)
    scores = checks.item_logits(params, catalogue, state)
    checks.shows_the_top(*made, scores)

  def test_loss_is_log_loss_of_the_responses(self):
    agent, params, catalogue, observation = checks.made("sasrec", dropout=0.0)
    step = checks.transition(observation)
    state = checks.state(params, catalogue, observation)
    scores = checks.item_logits(params, catalogue, state)[step.slate]
    scores = scores + params["items"]["params"]["response_bias"]
    want = metrics.log_loss(step.response, 1 / (1 + np.exp(-scores)))
    loss, _ = agent.loss(params, params, catalogue, step, checks.KEY, 0.5)
    np.testing.assert_allclose(loss, want, rtol=1e-4)

  def test_learns_from_logs(self):
    untrained, trained = toy.learning("sasrec", data=toy.logs())
    self.assertLess(untrained, 0.5)
    self.assertGreater(trained, 0.8)


if __name__ == "__main__":
  absltest.main()
