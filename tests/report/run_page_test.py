"""Tests of the report: its page, pictures and terminal table."""

import base64
import json
import pathlib
import re
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax.data.source import Items
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import measures
from hsrl_jax.report import plots, run_page
from tests import browser

_PICTURES = ("learning_curve", "semantic_space", "simulator")
_TITLE = '<b>&"Film"'
_ESCAPED = "&lt;b&gt;&amp;&#34;Film&#34;"


def _measure(mean, seeds=3):
  return {
    "mean": mean,
    "ci95": [mean - 0.31, mean + 0.31],
    "per_seed": [mean + 0.1 * i for i in range(seeds)],
  }


def _policy(reward, depth, normalised):
  return {
    "total_reward": _measure(reward),
    "depth": _measure(depth),
    "normalised": _measure(normalised),
    "positive_share": _measure(0.5),
  }


def _results(protocol="paper"):
  return {
    "format": measures.RESULTS_FORMAT,
    "recipe": "next_item",
    "protocol": protocol,
    "dataset": "toy_<set>",
    "split": "test",
    "episodes": 2000,
    "seeds": [0, 1, 2],
    "agent": "hsrl",
    "policies": {
      "hsrl": _policy(13.21, 15.02, 0.91),
      "greedy_oracle": _policy(14.33, 16.0, 1.0),
      "random": _policy(-1.25, 4.5, 0.0),
      "best_constant": _policy(12.47, 14.0, 0.88),
    },
    "simulator": {
      "auc": 0.771,
      "auc_within_users": 0.662,
      "log_loss": 0.563,
      "calibration_error": 0.034,
    },
  }


def _catalogue(count=40):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(count + 1, 5)).astype(np.float32)
  features[0] = 0
  names = [""] + [f"Title {i}" for i in range(1, count + 1)]
  names[1], names[2] = _TITLE, ""
  genres = [""] + ["Com$dy|Dr$ma" if i % 2 else "War" for i in range(count)]
  external = [""] + [f"x{i}" for i in range(1, count + 1)]
  return Items(features, external, names, genres)


def _jsonl(path, lines):
  path.write_text("".join(json.dumps(x) + "\n" for x in lines))


def _workdir(root, *, evals=3, seeds=3, levels=3, protocol="paper"):
  root = pathlib.Path(root)
  for stage in ("sids", "policy", "simulator", "report"):
    (root / stage).mkdir()
  (root / "results.json").write_text(json.dumps(_results(protocol)))
  count = 40
  digits = [np.arange(count) // 4**i % 4 for i in reversed(range(levels))]
  np.savez(
    root / "sids" / "sids.npz",
    format=1,
    item_id=np.arange(1, count + 1),
    tokens=np.stack(digits, 1),
  )
  facts = {
    "items": count,
    "levels": levels,
    "vocab_size": 4,
    "relative_error": [0.5 / (i + 1) for i in range(levels)],
    "relative_error_unique": 0.123,
    "collided_items": 17,
    "codes_used": [4] * levels,
    "perplexity": [3.5] * levels,
    "largest_code": [12] * levels,
    "smallest_code": [8] * levels,
  }
  (root / "sids" / "report.json").write_text(json.dumps(facts))
  losses = {"loss": 1.0, "actor_loss": -0.1, "critic_loss": 0.4}
  lines = [{"step": 100 * i, **losses} for i in range(1, 4)]
  lines += [
    {"step": 500 * i, "eval": {"total_reward": _measure(9 + i, seeds)}}
    for i in range(1, evals + 1)
  ]
  _jsonl(root / "policy" / "metrics.jsonl", lines)
  quality = _results()["simulator"]
  _jsonl(
    root / "simulator" / "metrics.jsonl",
    [{"epoch": i, "train_loss": 0.6, **quality} for i in (1, 2)],
  )
  step = {"titles": [_TITLE, "Plain"], "liked": [True, False]}
  example = {
    "history": [f"Old {i}" for i in range(12)],
    "steps": [step] * 7,
    "total_reward": 6.54,
    "depth": 7,
  }
  short = {**example, "history": [], "steps": [step], "depth": 1}
  (root / "report" / "examples.json").write_text(json.dumps([example, short]))
  return root


class ReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = self.enter_context(tempfile.TemporaryDirectory())

  def _page(self, results=None, examples=None, **kwargs):
    """The page of a run, on one line; of other results or examples, too."""
    root = pathlib.Path(self.root)
    if not (root / "report").exists():
      _workdir(root, **kwargs)
    for name, value in (
      ("results.json", results),
      ("report/examples.json", examples),
    ):
      if value is not None:
        (root / name).write_text(json.dumps(value))
    path = run_page.write(root, _catalogue())
    self.assertEqual(path, root / "report" / "report.html")
    return " ".join(path.read_text().split())

  def _has_all(self, text, *parts):
    for part in parts:
      self.assertIn(part, text)

  def test_shows_the_numbers(self):
    self._has_all(
      page := self._page(),
      "toy_&lt;set&gt;",
      "2,000 sessions",
      "seeds 0, 1, 2",
      '13.21 <span class="ci">[12.90, 13.52]</span>',
      "hsrl's total reward by seed: 13.21, 13.31, 13.41",
      "17 items (42.5%)",
      "loses 12.3% of",
      "0.771",
      "0.662",
      "total reward 6.54, depth 7",
    )
    self.assertEqual(page.count('<tr class="agent">'), 1)

  def test_sections_are_in_order(self):
    heads = re.findall("<h2>(.*?)</h2>", self._page())
    known = ["In the simulator", "Learning", "Semantic space", "User simulator"]
    self.assertEqual(heads, [*known, "Sessions"])

  def test_held_out_logs_lead_and_a_useless_simulator_is_grey(self):
    measured = {
      "auc_within_slates": {"mean": 0.61, "ci95": [0.6, 0.62]},
      "recall@10": {"mean": 0.0125, "ci95": [0.011, 0.014]},
    }
    results = _results()
    results["simulator"] |= {"verdict": "useless", "reasons": ["2 <users>"]}
    results |= {
      "held_out": {"hsrl": measured, "popularity": measured},
      "held_out_rows": {"rows": 1196, "users": 669, "of_rows": 2345}
      | {"items": 50_000},
      "held_out_differences": {
        "popularity": {
          "auc_within_slates": {"mean": 0.1, "ci95": [0.05, 0.15]},
          "recall@10": {"mean": 0.1, "ci95": [-0.05, 0.15]},
        }
      },
    }
    page = self._page(results)
    heads = re.findall("<h2>(.*?)</h2>", page)
    useless = "Verdict on the simulator: useless"
    self.assertEqual(heads[:3], ["Held-out logs", useless, "In the simulator"])
    drawn = "1,196 of 2,345 slates, of 669 users drawn at random"
    self._has_all(
      page,
      drawn,
      "1,196 slates",
      "ease and als are left out: 50,000 items",
      '0.0125 <span class="ci">[0.0110, 0.0140]</span>',
      "hsrl, AUC within slates: above popularity.",
      "hsrl, recall@10: not above popularity.",
      "<li>2 &lt;users&gt;</li>",
      '<div class="soft">',
    )
    text = run_page.table(results)
    self.assertLess(text.index("held-out logs"), text.index("total reward"))
    self.assertIn("simulator: useless: 2 <users>", text)
    self.assertIn(drawn, " ".join(text.split()))
    results["held_out_rows"]["users"] = 19
    few = " ".join(run_page.table(results).split())
    self.assertIn("too few users (19) to tell a policy from a list", few)
    self.assertNotIn("above popularity", few)
    results["held_out_rows"] |= {"of_rows": 1196, "users": 20}
    self.assertIn("above popularity", run_page.table(results))
    self.assertNotIn("drawn at random", run_page.table(results))
    hint = "To find what users like next, train with the recipe next_item"
    for recipe, low, told in (
      ("next_item,on_policy", -0.05, False),
      ("on_policy", -0.05, True),
      ("on_policy", 0.05, False),
    ):
      better = {"mean": 0.1, "ci95": [low, 0.15]}
      results["held_out_differences"]["popularity"]["recall@10"] = better
      results["recipe"] = recipe
      said = " ".join(run_page.table(results).split())
      self.assertEqual(hint in said, told)
    self.assertLessEqual(max(map(len, text.splitlines())), 80)

  def test_values_from_logs(self):
    refused = {"mean": None, "ci95": None, "ess": 3.2, "refused": "no overlap"}
    found = {"mean": 0.0123, "ci95": [0.009, 0.0171], "ess": 1234.5}
    difference = {"mean": 0.004, "ci95": [0.001, 0.009]}
    results = _results() | {
      "off_policy": {
        "hsrl": dict.fromkeys(("ips", "snips", "dr"), found),
        "popularity": dict.fromkeys(("ips", "snips", "dr"), refused),
        "logging_policy": {"on_policy": found},
      },
      "off_policy_differences": {
        "hsrl": dict.fromkeys(("ips", "snips", "dr"), difference)
      },
    }
    page = self._page(results)
    self.assertIn("<h2>Value from logs</h2>", page)
    text = run_page.table(results)
    self.assertLessEqual(max(map(len, text.splitlines())), 80)
    said = " ".join(text.split())
    self._has_all(
      said,
      "hsrl SNIPS 0.0123 [0.0090, 0.0171] 1,234",
      "popularity DR - - 3",
      "logging_policy on-policy 0.0123",
    )
    for text in (said, page):
      self._has_all(
        text,
        "the difference is believable: every interval is above 0.",
        "popularity: no estimate; no overlap.",
      )
    plain = run_page.table(_results())
    self.assertNotIn("value from logs", plain)
    said = "300 of 1,000 slates have propensities"
    rows = {"rows": 300, "with_propensities": 300, "of_rows": 1_000}
    self.assertIn(said, run_page.table(results | {"off_policy_rows": rows}))
    rows["with_propensities"] = 1_000
    self.assertNotIn(
      "propensities", run_page.table(results | {"off_policy_rows": rows})
    )

  def test_is_self_contained(self):
    page = self._page()
    sources = re.findall(r'src="(.*?)"', page)
    self.assertLen(sources, len(_PICTURES))
    for name, source in zip(_PICTURES, sources, strict=True):
      kind, data = source.split(",")
      self.assertEqual(kind, "data:image/png;base64")
      picture = (
        pathlib.Path(self.root) / "report" / f"{name}.png"
      ).read_bytes()
      self.assertEqual(base64.b64decode(data), picture)
      self.assertStartsWith(picture, b"\x89PNG")
    rest = re.sub(r'src="data:.*?"', "", page)
    self.assertNotRegex(rest, r"(?i)//|url\(|@import|<script|<link|href=|src=")

  def test_lists_of_users_say_why(self):
    item = {
      "title": _TITLE,
      "liked": True,
      "like": "Old & gold",
      "similarity": 0.876,
      "popularity": 1234,
      "shown_to": 0.618,
    }
    plain = {"title": "B", "liked": False, "like": None, "similarity": None}
    example = {
      "user": 17,
      "users": 669,
      "items": 9066,
      "history": [f"Old {i}" for i in range(12)],
      "later": [f"New {i}" for i in range(14)],
      "recommended": [item, item | plain],
    }
    unknown = example | {"user": 18, "history": [], "later": []}
    folded = self._page(examples=[example, unknown, unknown])
    self.assertIn("<summary>… 1 more user", folded)
    page = self._page(examples=[example, unknown])
    heads = re.findall("<h2>(.*?)</h2>", page)
    self.assertEqual(heads[:2], ["Examples", "In the simulator"])
    self.assertNotIn("more user", page)
    self.assertIn("some of the 669 users of the test split", page)
    self.assertIn(
      f'<tr class="liked"><td><span role="img" aria-label="liked later">✓'
      f"</span> {_ESCAPED}</td> <td>Old &amp; gold</td>"
      '<td class="number">0.88</td> <td class="number">1,234</td>'
      '<td class="number">62%</td></tr>',
      page,
    )
    self.assertIn('<tr><td>B</td> <td>–</td><td class="number">–</td>', page)
    self.assertEqual(page.count("<summary>… 4 earlier</summary>"), 1)
    self.assertEqual(page.count("<summary>… 2 more</summary>"), 1)
    self.assertEqual(page.count("Nothing is known of what the user"), 1)
    self.assertEqual(page.count("Nothing was liked later."), 1)

  def test_escapes_titles(self):
    page = self._page()
    self.assertNotIn(_TITLE, page)
    self.assertIn(f"✓</span> {_ESCAPED}", page)
    self.assertIn("<li>Plain</li>", page)

  def test_an_item_without_title_has_its_external_id(self):
    self.assertIn("<li>item x2</li>", self._page())

  def test_folds_long_sessions(self):
    page = self._page()
    self.assertIn("<summary>… 4 earlier</summary>", page)
    self.assertEqual(page.count("<summary>… 4 more steps</summary>"), 1)
    self.assertNotIn("more step<", page)
    self.assertEqual(page.count("The user liked before"), 1)
    self.assertEqual(page.count("Nothing is known of what"), 1)
    self.assertEqual(page.count("<b>Step 1</b>"), 2)
    self.assertEqual(page.count("<b>Step 7</b>"), 1)

  def test_leaves_no_temporary_file(self):
    self._page()
    self.assertCountEqual(
      [x.name for x in (pathlib.Path(self.root) / "report").iterdir()],
      ["examples.json", "report.html", *(f"{x}.png" for x in _PICTURES)],
    )

  def test_is_deterministic(self):
    self.assertEqual(self._page(), self._page())

  @parameterized.parameters(
    {"evals": 1}, {"evals": 0}, {"seeds": 1}, {"levels": 4}
  )
  def test_unusual_runs(self, **kwargs):
    self.assertIn("</html>", self._page(**kwargs))

  @parameterized.parameters("paper", "no_repeat")
  def test_explains_the_protocol(self, protocol):
    page = self._page(protocol=protocol)
    self.assertIn(f"In the <code>{protocol}</code> protocol", page)

  def test_the_curve_has_the_name_of_its_agent(self):
    lines = [{"step": 1, "eval": {"total_reward": _measure(9.0)}}]
    figure = plots.learning_curve("sasrec", lines, [], {})
    texts = [x.get_text() for x in figure.axes[0].texts]
    self.assertEqual(texts, ["sasrec"])
    with mock.patch.object(
      plots, "learning_curve", side_effect=plots.learning_curve
    ) as drawn:
      self._page(_results() | {"agent": "random"})
    self.assertEqual(drawn.call_args.args[0], "random")

  def test_training_on_the_next_item_is_shown_by_seed(self):
    root = _workdir(self.root)
    results = _results()
    kept = {"step": [7] * 3, "measure": [0.25] * 3}
    point = {"ndcg@10": {"mean": 0.25, "per_seed": [0.25] * 3}, "kept": kept}
    self.assertEqual(results["seeds"], [0, 1, 2])
    _jsonl(
      root / "policy" / "metrics.jsonl",
      [{"step": 7, "loss": 3.0}, {"step": 7, "eval": point}],
    )
    page = self._page()
    self.assertIn("<h2>Training on the next item</h2>", page)
    self.assertNotIn("<h2>Learning</h2>", page)
    for seed in results["seeds"]:
      cells = "".join(f'<td class="number">{x}</td>' for x in ("7", "0.2500"))
      self.assertIn(f"<tr><td>{seed}</td>{cells}</tr>", page)
    self.assertTrue((root / "report" / "next_item.png").exists())

  def test_curves_of_the_next_item_by_seed(self):
    losses = [{"step": 5, "loss": 3.0}, {"step": 10, "loss": 2.0}]
    found = ([0.2, 0.1], [0.1, 0.3])
    validated = [
      {"step": step, "eval": {"ndcg@10": {"per_seed": own}}}
      for step, own in zip((5, 10), found, strict=True)
    ]
    kept = {"step": [5, 10], "measure": [0.2, 0.3]}
    validated[-1]["eval"]["kept"] = kept
    left, right = plots.next_item(losses, validated, [5, 9]).axes
    (loss,) = left.lines
    self.assertEqual(loss.get_xydata().tolist(), [[5, 3], [10, 2]])
    first, best, second, other = right.lines
    self.assertEqual(first.get_xydata().tolist(), [[5, 0.2], [10, 0.1]])
    self.assertEqual(second.get_xydata().tolist(), [[5, 0.1], [10, 0.3]])
    self.assertEqual(best.get_xydata().tolist(), [[5, 0.2]])
    self.assertEqual(other.get_xydata().tolist(), [[10, 0.3]])
    self.assertEqual(
      [x.get_text() for x in right.get_legend().get_texts()],
      ["seed 5", "seed 9"],
    )

  def test_recall_with_and_without_the_history(self):
    measured = {
      "recall@10": {"mean": 0.0125, "ci95": [0.011, 0.014]},
      "recall@10_with_history": {"mean": 0.0045, "ci95": [0.004, 0.005]},
    }
    results = _results() | {
      "held_out": {"hsrl": measured, "popularity": measured},
      "held_out_rows": {"rows": 1196, "users": 669},
    }
    page = self._page(results)
    self.assertIn('0.0045 <span class="ci">[0.0040, 0.0050]</span>', page)
    self.assertIn("<b>with history</b>: recall@10 where these stay", page)
    lines = run_page.table(results).splitlines()
    head = next(x for x in lines if "held-out logs" in x)
    self.assertIn("recall@10  with history", head)
    self.assertLessEqual(max(map(len, lines)), 80)
    del measured["recall@10_with_history"]
    self.assertNotIn("with history", run_page.table(results))

  def test_a_click_model_without_epochs_has_no_picture(self):
    root = _workdir(self.root)
    (root / "simulator" / "metrics.jsonl").write_text("")
    page = self._page()
    self.assertLen(re.findall('src="', page), 2)
    self.assertIn("User simulator", page)

  def test_missing_file_is_an_input_error(self):
    root = _workdir(self.root)
    (root / "sids" / "sids.npz").unlink()
    with self.assertRaisesRegex(InputError, "sids.npz"):
      run_page.write(root, _catalogue())

  def test_what_follows_from_a_policy_that_leaves_the_logs(self):
    results = _results()
    results["simulator"] |= {"verdict": "good", "reasons": []}
    results["policy_in_simulator"] = {
      "verdict": "weak",
      "reasons": ["hsrl shows <much>"],
      "like_rate": None,
      "unseen_share": 0.62,
      "as_greedy": 0.034,
    }
    follows = "do not use this number to choose between policies"
    self._has_all(
      self._page(results),
      "<h2>Verdict on the simulator: good</h2>",
      "<h2>Verdict on hsrl in it: weak</h2>",
      "<li>hsrl shows &lt;much&gt;</li>",
      follows,
      "liked to an unknown share; 62% of what it shows",
      "3% of its slates are those of the greedy oracle",
    )
    text = " ".join(run_page.table(results).split())
    self.assertIn(
      f"hsrl in it: hsrl shows <much>. Simulated reward: {follows}", text
    )

  def test_worlds_with_foresight_show_more_where_it_fits(self):
    results = _results()
    for policy in results["policies"].values():
      policy["above_greedy"] = _measure(policy["total_reward"]["mean"] - 14.33)
      policy["coverage"] = {"mean": 0.125, "ci95": [None, None]}
    self.assertNotIn("above greedy", run_page.table(results))
    results["policies"]["myopic"] = results["policies"]["greedy_oracle"]
    self.assertIn("above greedy", run_page.table(results))
    results["policies"]["farsighted"] = results["policies"].pop("myopic")
    lines = run_page.table(results).splitlines()
    self.assertTrue(all(len(line) <= 80 for line in lines))
    head = next(line for line in lines if line.startswith("policy"))
    self.assertEndsWith(head, "  above greedy")
    row = next(line for line in lines if line.startswith("hsrl"))
    self.assertRegex(row, r" -1\.12$")
    for policy in results["policies"].values():
      policy["total_reward"]["ci95"] = [1000000.125, 1000000.125]
    head = run_page.table(results).splitlines()[2]
    self.assertIn("normalised", head)
    self.assertNotIn("above greedy", head)
    page = self._page(results)
    self.assertIn('-1.12 <span class="ci">[-1.43, -0.81]</span>', page)
    self.assertIn(">12.5%</td>", page)

  def test_losses_begin_where_something_was_learned(self):
    """Before the first gradient step, all that is measured is 0."""
    lines = [
      {"step": 100 * i, "loss": loss, "critic_loss": 0.0, "reward": 1.0}
      for i, loss in enumerate((0.0, 0.0, 2.0, 0.0, 1.0))
    ]
    _, loss, _ = plots.learning_curve("hsrl", [], lines, {}).axes
    (drawn,) = loss.lines
    self.assertEqual(drawn.get_xdata().tolist(), [200, 300, 400])
    self.assertEqual(drawn.get_ydata().tolist(), [2, 0, 1])

  def test_says_why_the_curves_of_the_click_model_end_elsewhere(self):
    words = "curves are of the network alone, the table is of its blend"
    self.assertNotIn(words, " ".join(self._page().split()))
    results = _results()
    results["simulator"]["blend"] = {"logit": 1.0}
    with tempfile.TemporaryDirectory() as folder:
      root = _workdir(folder)
      (root / "results.json").write_text(json.dumps(results))
      page = run_page.write(root, _catalogue()).read_text()
    self.assertIn(words, " ".join(page.split()))

  @pytest.mark.slow
  @pytest.mark.skipif(not browser.PROGRAM, reason="no Chromium is installed")
  def test_no_column_is_cut_off_on_a_screen_of_1200_pixels(self):
    results = _results()
    for policy in results["policies"].values():
      for _, key, form in measures.columns():
        policy[key] = _measure(0.6 if "%" in form else -12.0)
    root = _workdir(self.root)
    (root / "results.json").write_text(json.dumps(results))
    page = run_page.write(root, _catalogue())
    with browser.tab() as tab:
      tab.screenshot(root / "page.png", width=1200, height=900)
      tab.open(page.as_uri())
      heads = tab.texts("table.wide th")
      self.assertContainsSubset({"Policy", "Normalised"}, heads)
      cut = "[...document.querySelectorAll('.scroll:has(table)')]"
      cut += ".filter(x => x.scrollWidth > x.clientWidth).length"
      self.assertEqual(tab.js(cut), 0)


class TableTest(absltest.TestCase):
  def test_rows_ascend_and_align(self):
    lines = run_page.table(_results()).splitlines()
    names = ["random", "best_constant", "hsrl", "greedy_oracle"]
    rows = lines[-4:]
    self.assertEqual([row.split()[0] for row in rows], names)
    self.assertLen({len(row) for row in rows}, 1)
    self.assertLen({row.index("[") for row in rows}, 1)
    self.assertIn("13.21  [12.90, 13.52]  15.02", lines[-2])
    self.assertEndsWith(lines[-2], "0.91")

  def test_header_names_the_run_within_80_columns(self):
    results = _results() | {"seeds": list(range(40))}
    text = run_page.table(results)
    for part in ("toy_<set>", "split test", "protocol paper", "2000 episodes"):
      self.assertIn(part, text)
    self.assertLessEqual(max(map(len, text.splitlines())), 80)

  def test_a_missing_measure_is_a_dash(self):
    results = _results()
    results["policies"]["hsrl"]["normalised"] = None
    self.assertEndsWith(run_page.table(results).splitlines()[-2], " -")


class PlotsTest(absltest.TestCase):
  def test_pca_finds_the_widest_direction(self):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)) * (0.1, 5.0, 0.1, 1.0)
    points, share = plots.pca(x)
    centred = x - x.mean(0)
    self.assertGreater(np.corrcoef(points[:, 0], centred[:, 1])[0, 1], 0.99)
    self.assertGreater(np.corrcoef(points[:, 1], centred[:, 3])[0, 1], 0.99)
    self.assertGreater(share[0], 0.9)

  def test_typical_genres_exceed_the_catalogue(self):
    names, table = plots.genre_table(["A|B", "A|B", "A", "A|C"])
    self.assertEqual(names, ["A", "B", "C"])
    typical = plots.typical_genres(names, table, np.array([0, 1]))
    self.assertEqual(typical, [("B", 1.0)])

  def test_items_without_genres(self):
    names, table = plots.genre_table(["", ""])
    self.assertEqual(table.shape, (2, 0))
    self.assertEmpty(plots.typical_genres(names, table, np.array([0])))


if __name__ == "__main__":
  absltest.main()
