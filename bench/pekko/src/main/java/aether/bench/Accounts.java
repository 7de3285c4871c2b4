package aether.bench;

import com.typesafe.config.Config;
import com.typesafe.config.ConfigFactory;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Function;
import org.apache.pekko.actor.typed.ActorRef;
import org.apache.pekko.actor.typed.ActorSystem;
import org.apache.pekko.actor.typed.Behavior;
import org.apache.pekko.actor.typed.Props;
import org.apache.pekko.actor.typed.SpawnProtocol;
import org.apache.pekko.actor.typed.javadsl.AskPattern;
import org.apache.pekko.actor.typed.javadsl.Behaviors;
import org.apache.pekko.persistence.jdbc.testkit.javadsl.SchemaUtils;

/** An actor system with one journal, and the ways to reach its accounts. */
final class Accounts {
  private static final Duration TIMEOUT = Duration.ofSeconds(60);
  /** Replays or writes under way at once, where a bench does not say. */
  private static final int AT_ONCE = 512;

  private final ActorSystem<SpawnProtocol.Command> system;
  private final AtomicLong spawned = new AtomicLong();

  /**
   * @param journal leveldb, leveldb-fsync or postgresql
   * @param place folder of LevelDB, or host:port of PostgreSQL
   */
  Accounts(String journal, String place) throws Exception {
    Config config = ConfigFactory.parseString(settings(journal, place)).withFallback(ConfigFactory.load()).resolve();
    system = ActorSystem.create(Behaviors.<SpawnProtocol.Command>setup(context -> SpawnProtocol.create()), "bench", config);
    if (journal.equals("postgresql")) {
      SchemaUtils.createIfNotExists(system).toCompletableFuture().get();
    }
  }

  ActorRef<Account.Command> spawn(String id) throws Exception {
    return this.<SpawnProtocol.Command, ActorRef<Account.Command>>ask(system, replyTo -> {
      Behavior<Account.Command> account = new Account(id);
      return new SpawnProtocol.Spawn<>(account, id + "-" + spawned.incrementAndGet(), Props.empty(), replyTo);
    }).toCompletableFuture().get();
  }

  CompletionStage<Integer> deposit(ActorRef<Account.Command> account, int events, String id) {
    return ask(account, replyTo -> new Account.Deposit(Account.AMOUNT, events, id, replyTo));
  }

  CompletionStage<Integer> balance(ActorRef<Account.Command> account) {
    return ask(account, Account.Ask::new);
  }

  /** Makes {@code commits} commits for each of some new actors, interleaved, and stops the actors. */
  void fill(String prefix, int actors, int commits, int events) throws Exception {
    List<ActorRef<Account.Command>> accounts = new ArrayList<>();
    for (int number = 0; number < actors; number++) {
      accounts.add(spawn(prefix + number));
    }
    List<CompletionStage<Integer>> underWay = new ArrayList<>();
    for (int commit = 0; commit < commits; commit++) {
      for (ActorRef<Account.Command> account : accounts) {
        underWay.add(deposit(account, events, "c-00000000"));
        if (underWay.size() == AT_ONCE) {
          await(underWay);
        }
      }
    }
    await(underWay);
    stop(accounts);
  }

  /** Starts actors that were filled, {@code atOnce} at a time, and returns the seconds until the last has replayed. */
  double replay(String prefix, int actors, int atOnce, int balance) throws Exception {
    List<ActorRef<Account.Command>> accounts = new ArrayList<>();
    List<CompletionStage<Integer>> underWay = new ArrayList<>();
    long began = System.nanoTime();
    for (int number = 0; number < actors; number++) {
      ActorRef<Account.Command> account = spawn(prefix + number);
      accounts.add(account);
      underWay.add(balance(account));
      if (underWay.size() >= atOnce) {
        check(underWay.remove(0), balance);
      }
    }
    for (CompletionStage<Integer> answer : underWay) {
      check(answer, balance);
    }
    double seconds = (System.nanoTime() - began) / 1e9;
    stop(accounts);
    return seconds;
  }

  private void check(CompletionStage<Integer> answer, int balance) throws Exception {
    int found = answer.toCompletableFuture().get();
    if (found != balance) {
      throw new IllegalStateException("an account has " + found + " after its replay, not " + balance);
    }
  }

  private void stop(List<ActorRef<Account.Command>> accounts) throws Exception {
    accounts.forEach(account -> account.tell(new Account.Stop()));
    Thread.sleep(500); // Pekko tells nobody outside when they are gone; a name is never used twice, so nothing depends on it
  }

  private static void await(List<CompletionStage<Integer>> underWay) throws Exception {
    for (CompletionStage<Integer> answer : underWay) {
      answer.toCompletableFuture().get();
    }
    underWay.clear();
  }

  private <Request, Answer> CompletionStage<Answer> ask(ActorRef<Request> target, Function<ActorRef<Answer>, Request> build) {
    return AskPattern.ask(target, build::apply, TIMEOUT, system.scheduler());
  }

  private static String settings(String journal, String place) {
    String common =
        "pekko.loglevel=ERROR\npekko.stdout-loglevel=OFF\n"
            + "pekko.actor.serialization-bindings { \"aether.bench.Account$Deposited\" = jackson-json }\n"
            + "pekko.persistence.snapshot-store.plugin=\"pekko.persistence.no-snapshot-store\"\n";
    if (journal.equals("postgresql")) {
      return common
          + "pekko.persistence.journal.plugin=\"jdbc-journal\"\n"
          + "slick { profile=\"slick.jdbc.PostgresProfile$\", db { driver=\"org.postgresql.Driver\", user=\"bench\", password=\"\",\n"
          + "  url=\"jdbc:postgresql://" + place + "/postgres?reWriteBatchedInserts=true\", numThreads=10, maxConnections=10, minConnections=10 } }\n"
          + "jdbc-journal { slick = ${slick} }\njdbc-snapshot-store { slick = ${slick} }\njdbc-read-journal { slick = ${slick} }\n";
    }
    return common
        + "pekko.persistence.journal.plugin=\"pekko.persistence.journal.leveldb\"\n"
        + "pekko.persistence.journal.leveldb { dir=\"" + place + "\", native=on, fsync=" + (journal.endsWith("fsync") ? "on" : "off") + " }\n";
  }
}
