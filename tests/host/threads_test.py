"""Work in threads: its order, and what an error leaves undone."""

import threading
import time

from absl.testing import absltest

from hsrl_jax.host import threads


class SideBySideTest(absltest.TestCase):
  def test_results_are_in_the_order_of_the_items(self):
    def work(number):
      time.sleep(0.02 * (3 - number))
      return number, threading.current_thread() is threading.main_thread()

    made = list(threads.side_by_side(work, range(4)))
    self.assertEqual(made, [(x, False) for x in range(4)])
    self.assertEmpty(list(threads.side_by_side(work, ())))

  def test_an_error_ends_it(self):
    begun = []

    def work(number):
      begun.append(number)
      if number == 1:
        raise ValueError("one is bad")
      time.sleep(0.05)
      return number

    with self.assertRaisesRegex(ValueError, "one is bad"):
      list(threads.side_by_side(work, range(1000)))
    self.assertLess(len(begun), 200)


if __name__ == "__main__":
  absltest.main()
